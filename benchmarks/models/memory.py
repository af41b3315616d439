"""``python -m benchmarks.models.memory FIRST SECOND``: bytes that a load takes at most, in a process of its own.

A process that loaded before keeps freed memory for itself: what the next load takes of it would go unseen.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.models import files
from streamapp.engine.engine import Engine


def taken(copies: float, first: Path, second: Path) -> int:
    """Of a load beside a resident checkpoint whose modules it takes, with room for so many copies in RAM."""
    size = first.stat().st_size
    engine = Engine(vram_bytes=int(1.3 * size), ram_bytes=int(copies * size))
    with files.readable():
        engine.load("first", first)
        return peak(lambda: engine.load("second", second))


def peak(work: Callable[[], object]) -> int:
    """Bytes that a piece of work takes at most beyond what is held now."""
    gc.collect()
    before, most, done = files.held(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, files.held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(most, files.held()) - before


if __name__ == "__main__":
    print(json.dumps(taken(float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))))
