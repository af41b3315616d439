"""P6d and P7: what a switch costs by tier, and how much of a load hides behind a batch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from benchmarks.engine import models as drawn
from benchmarks.engine.figures import Figure, ratios, summary
from benchmarks.models import files
from benchmarks.models.loading import in_turns
from streamapp.engine import weights_file
from streamapp.engine.engine import Engine
from streamapp.engine.job import Job

#: Bytes a second of the disk that is played.
DISK = 1e9


@contextmanager
def paced(rate: float) -> Iterator[None]:
    """Files are read at this rate meanwhile, whatever the page cache holds."""
    due = [0.0]

    def slowly(file: int, buffers: list[memoryview], offset: int) -> None:
        size = sum(len(buffer) for buffer in buffers)
        began = max(due[0], time.perf_counter())
        while buffers:
            count = os.preadv(file, buffers, offset)
            offset += count
            while buffers and count >= len(buffers[0]):
                count -= len(buffers.pop(0))
            if count:
                buffers[0] = buffers[0][count:]
        due[0] = began + size / rate
        time.sleep(max(0.0, due[0] - time.perf_counter()))

    with (
        mock.patch.object(weights_file, "_read", slowly),
        mock.patch.object(weights_file.WeightsFile, "_cached", return_value=False),
    ):
        yield


def switch(paths: Sequence[Path], rounds: int) -> Figure:
    """P6d: to and fro between two checkpoints, one set of modules."""
    size = max(path.stat().st_size for path in paths)
    kept = Engine(vram_bytes=int(1.3 * size), ram_bytes=3 * size)
    bare = Engine(vram_bytes=int(1.3 * size), ram_bytes=int(1.1 * size))
    turns = {"ram": 0, "disk": 0}

    def leg(name: str, engine: Engine) -> None:
        turns[name] += 1
        place = turns[name] % 2
        loaded = engine.load(str(place), paths[place])
        assert turns[name] < 3 or loaded.tier == name

    with files.readable(), paced(DISK):
        for engine in (kept, bare):
            for place, path in enumerate(paths):
                engine.load(str(place), path)
        taken = in_turns({"ram": lambda: leg("ram", kept), "disk": lambda: leg("disk", bare)}, rounds)
    for engine in (kept, bare):
        engine.close()
    return Figure("P6d", ratios(taken["ram"], taken["disk"]), rounds, {name: summary(t) for name, t in taken.items()},
                  {"MB": round(size / 1e6, 1)})  # fmt: skip


def hidden(folder: Path, path: Path, rounds: int, seconds: float = 1.0) -> Figure:
    """P7: a batch of about ``seconds`` while another checkpoint is read ahead, paced to take as long."""
    drawn.sd15(folder)
    size = path.stat().st_size
    engine = Engine(ram_bytes=3 * size, max_batch_rows=8, decode_queue=0)
    engine.load("m", folder)
    ticks = 0

    def compute() -> None:
        side = drawn.SIDE
        engine.submit(Job("m", "x", width=side, height=side, num_inference_steps=max(ticks, 2), num_images=4, seed=1))
        for _ in engine.run():
            pass

    ticks = 10
    began = time.perf_counter()
    compute()
    ticks = max(10, int(seconds / (time.perf_counter() - began) * 10))

    def load() -> None:
        engine.prefetch(path, "sd15")
        engine.tiers.host.settle()

    beside: list[float] = []

    def both() -> None:
        engine.prefetch(path, "sd15")
        began = time.perf_counter()
        compute()
        beside.append(time.perf_counter() - began)
        engine.tiers.host.settle()

    with files.readable(), paced(size / seconds):
        taken = in_turns({"compute": compute, "load": load, "both": both}, rounds, engine.tiers.host.clear)
    engine.close()
    longer = [max(one, other) for one, other in zip(taken["compute"], taken["load"], strict=True)]
    slowed = min(beside) / min(taken["compute"])
    return Figure("P7", ratios(taken["both"], longer), rounds, {name: summary(t) for name, t in taken.items()},
                  {"the batch beside the load / alone, least": round(slowed, 3), "steps": ticks})  # fmt: skip
