"""A process of the service with probes: how late its event loop comes round, and when tasks are queued and begun.

Every second ``PROBE_OUT`` gets how many milliseconds each wake-up was late, as JSON; ``BENCH_MARKS``: see
:mod:`benchmarks.pipeline.marks`. Without either it is a plain worker or web process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from benchmarks.pipeline import marks
from streamapp.app import StreamApp
from streamapp.db import NewTask, TaskRow, Tasks
from streamapp.engine.aio import AsyncEngine
from streamapp.run import run_app
from streamapp.settings import load_settings
from streamapp.telemetry import configure_logging

#: A probe sleeps this long, in seconds; whatever it sleeps longer is a stall.
TICK = 0.005


def watch(app: StreamApp) -> None:
    """Add the probe of the event loop."""
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


def note_tasks() -> None:
    """Mark the moment in which a submitted row is durable, and that in which the engine gets a task."""
    insert, submit = Tasks.insert, AsyncEngine.submit

    async def inserted(self: Tasks, new: NewTask) -> tuple[TaskRow, bool]:
        answer = await insert(self, new)
        marks.mark("queued", new.id)
        return answer

    def submitted(self: AsyncEngine, job: Any, job_id: str) -> None:
        marks.mark("begun", job_id)
        submit(self, job, job_id)

    Tasks.insert = inserted  # type: ignore[method-assign]
    AsyncEngine.submit = submitted  # type: ignore[method-assign]


if __name__ == "__main__":
    if marks.keep():
        note_tasks()
    settings = load_settings()
    configure_logging(settings)
    run_app(settings, cast("Literal['worker', 'web']", sys.argv[1]), watch)
