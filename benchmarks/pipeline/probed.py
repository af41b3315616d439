"""A worker of the service with a probe in its event loop: how late the loop comes round.

Every second ``PROBE_OUT`` gets how many milliseconds each wake-up was late, as JSON. Without it a plain worker.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import orjson

from streamapp.app import StreamApp
from streamapp.run import run_app
from streamapp.settings import load_settings

#: A probe sleeps this long, in seconds; whatever it sleeps longer is a stall.
TICK = 0.005


def watch(app: StreamApp) -> None:
    """Add the probe."""
    out = os.environ.get("PROBE_OUT")
    if out is None:
        return
    late: list[float] = []

    async def probe() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append((time.perf_counter() - began - TICK) * 1000)

    def write() -> None:
        while True:
            time.sleep(1)
            Path(out).write_bytes(orjson.dumps(late[:]))

    app.background.append(probe)
    threading.Thread(target=write, daemon=True).start()


if __name__ == "__main__":
    run_app(load_settings(), "worker", watch)
