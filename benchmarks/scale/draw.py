"""``python -m benchmarks.scale.draw FILE FAMILY DTYPE``: load and draw in a process of its own, and print what it took.

The network is shut for it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

import orjson

from streamapp.engine import Engine, Job

SIDE, STEPS = 256, 2
EVERY = 0.02


class Peak:
    """The most anonymous memory that this process had, bytes, as the kernel counts it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> int:
        """Stop watching; the peak."""
        self._ended.set()
        self._thread.join()
        return self.bytes

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self.bytes = max(self.bytes, anonymous())


def anonymous() -> int:
    """Bytes of anonymous and shared memory now."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return sum(int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def refuse(*_: object) -> None:
    """In place of every connection."""
    raise OSError("the network is shut")


def main() -> None:
    """See the module."""
    file, family, dtype = sys.argv[1:4]
    socket.socket.connect = refuse  # type: ignore[method-assign]
    peak = Peak()
    began = time.monotonic()
    engine = Engine(device="cpu", dtype=dtype, threads=int(os.environ.get("OMP_NUM_THREADS", "1")))
    engine.load("m", file, family)
    loaded = time.monotonic()
    engine.submit(Job(model="m", prompt="a red apple", width=SIDE, height=SIDE, num_inference_steps=STEPS))
    events = list(engine.run())
    failed = [event.value for event in events if event.kind == "failed"]
    if failed:
        raise failed[0]
    pictures = [event.value for event in events if event.kind == "image"]
    facts = {
        "peak_gib": peak.close() / 1024**3,
        "weights_gb": engine.stats()["checkpoints"]["m"] / 1e9,
        "load_s": loaded - began,
        "draw_s": time.monotonic() - loaded,
        "pictures": len(pictures),
        "size": list(pictures[0].size),
    }
    engine.close()
    print(orjson.dumps(facts).decode())


if __name__ == "__main__":
    main()
