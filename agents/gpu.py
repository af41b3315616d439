"""The GPU agent: woken by every change, with a timer behind it; each turn lets a window of jobs join the engine.

It is woken through an event of our own and runs as a task of its own, because a Faust channel is emptied at every
rebalance and blocked while tables recover, and the engine must be fed meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from streamapp.errors import Unavailable
from streamapp.telemetry import get_logger
from streamapp.worker.worker import Worker

log = get_logger(__name__)
#: Held jobs, deadlines and a database that came back are noticed within this many seconds.
TICK = 0.25
LONGEST_DELAY = 5.0
#: A worker whose engine is away for this many times the start time ends, so that its partitions go elsewhere.
GIVE_UP = 3


def attach(app: Any) -> None:
    """Run the agent from the moment the process has its worker until the drain is over."""
    app.background.append(lambda: run(app.runtime.worker))


async def run(worker: Worker) -> None:
    """Turn after turn until cancelled. At once while the engine has room; a full engine gathers a window."""
    delay = 0.2
    seen_ready = time.monotonic()
    while True:
        if worker.drawing.state == "ready":
            seen_ready = time.monotonic()
        elif time.monotonic() - seen_ready > GIVE_UP * worker.settings.engine_start:
            raise RuntimeError(
                f"the engine is {worker.drawing.state} and did not come back: others shall have the work"
            )
        # Not wait_for: it swallows a cancellation that comes together with the event.
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK):
                await worker.woken.wait()
        worker.woken.clear()
        began = time.monotonic()
        try:
            await worker.window()
            delay = 0.2
        except Unavailable as error:
            log.warning(error.message, action="window_waits")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)
        except Exception:  # supervised: the next turn may succeed, and no turn means no pictures at all
            log.exception("a window failed", action="window_failed")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)
        if worker.crowded:
            # A full engine is not asked again for one window; one with room never waits.
            await asyncio.sleep(max(0.0, worker.settings.window - (time.monotonic() - began)))
