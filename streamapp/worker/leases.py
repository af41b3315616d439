"""Heartbeat of the running jobs: progress out and cancel flags in once a second, leases renewed in bulk.

Both loops are plain tasks of the worker: Faust's timers end when a stop begins, before the drain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from streamapp.db import Claims
from streamapp.errors import Unavailable
from streamapp.telemetry import get_logger
from streamapp.worker.claimed import Claimed, Why

log = get_logger(__name__)
BEAT = 1.0


class Leases:
    """Keeps the claims of one worker alive."""

    def __init__(self, claims: Claims, running: dict[str, Claimed], lease: float, renewal: float) -> None:
        self._claims = claims
        self._running = running
        self._lease = lease
        self._renewal = renewal
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start both loops."""
        self._tasks = [
            asyncio.create_task(self._loop(BEAT, self.beat), name="beat"),
            asyncio.create_task(self._loop(self._renewal, self.renew), name="renew"),
        ]

    async def close(self) -> None:
        """Stop both loops; call after the last claim is finished or handed back."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def beat(self) -> None:
        """Write the progress of all running jobs, stop those that shall be cancelled."""
        live = [(i, c) for i, c in self._running.items() if not c.ending and c.why is None]
        shares = {i: (c.token, round(c.progress, 3)) for i, c in live}
        for task_id in await self._claims.beat(shares) if shares else ():
            claimed = self._running.get(task_id)
            if claimed is not None:
                claimed.stop(Why.CANCEL)

    async def renew(self) -> None:
        """Extend all leases, stop those that are lost."""
        tokens = {i: c.token for i, c in self._running.items()}
        for task_id in await self._claims.renew(tokens, self._lease) if tokens else ():
            claimed = self._running.get(task_id)
            if claimed is not None and claimed.token == tokens[task_id]:
                claimed.stop(Why.LOST)

    async def _loop(self, interval: float, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            began = time.monotonic()
            try:
                await step()
            except Unavailable as error:
                # A renewal succeeds after the lease ran out as long as nobody else claimed.
                log.warning(error.message, action="beat_waits")
            except Exception:  # supervised: a dead heartbeat would lose every running job
                log.exception("a heartbeat failed", action="beat_failed")
            await asyncio.sleep(max(0.05, interval - (time.monotonic() - began)))
