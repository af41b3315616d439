"""When a task was queued and when its engine began, noted by both sides alike on the clock of their common host.

``queued``: the row is durable. ``begun``: the state "running" is durable and the engine has been handed the task. A
mark is an append to a list; a thread writes them to a file of ``BENCH_MARKS`` five times a second.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import orjson

EVERY = 0.2

_marks: list[tuple[str, str, float]] = []


def mark(what: str, task_id: str) -> None:
    """Note that something happens to a task now."""
    _marks.append((what, task_id, time.time()))


def keep() -> bool:
    """Write marks of this process down, if the benchmark asks for them; whether it does."""
    folder = os.environ.get("BENCH_MARKS")
    if folder is None:
        return False
    out = Path(folder) / f"{os.getpid()}.json"

    def write() -> None:
        written = 0
        while True:
            time.sleep(EVERY)
            if len(_marks) > written:
                written = len(_marks)
                fresh = out.with_suffix(".fresh")
                fresh.write_bytes(orjson.dumps(_marks[:written]))
                fresh.replace(out)

    threading.Thread(target=write, daemon=True).start()
    return True


def read(folder: Path) -> dict[str, dict[str, float]]:
    """By kind of mark and task: when, in seconds since 1970."""
    found: dict[str, dict[str, float]] = {"queued": {}, "begun": {}}
    for part in folder.glob("*.json"):
        for what, task_id, at in orjson.loads(part.read_bytes()):
            found.setdefault(what, {}).setdefault(task_id, at)
    return found
