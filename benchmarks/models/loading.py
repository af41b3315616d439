"""P6a, P6b, P6c, P6e: from a file into modules."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from benchmarks.engine.figures import Figure, ratios, summary
from benchmarks.models import files
from streamapp.engine import weights_file


def in_turns(
    legs: Mapping[str, Callable[[], object]], rounds: int, prepare: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each leg by round, in an order of its own each time; ``prepare`` comes before each leg."""
    order, chance = list(legs), random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in legs}
    for number in range(rounds + 1):
        chance.shuffle(order)
        for name in order:
            gc.collect()
            prepare()
            began = time.perf_counter()
            legs[name]()
            if number:
                taken[name].append(time.perf_counter() - began)
    return taken


def ranges_of(path: Path, parts: Any) -> list[tuple[int, memoryview]]:
    """Where a load reads what to."""
    found: list[tuple[int, memoryview]] = []
    with (
        mock.patch.object(weights_file, "read_ranges", lambda _, ranges: found.extend(ranges)),
        mock.patch.object(weights_file.WeightsFile, "_cached", return_value=False),
    ):
        files.read(path, into=parts)
    return sorted(found, key=lambda entry: entry[0])


def cold_and_warm(path: Path, rounds: int) -> list[Figure]:
    """P6a, P6b and P6c, all into the same modules, which were touched before."""
    parts = files.read(path)
    ranges = ranges_of(path, parts)
    size = sum(len(memory) for _, memory in ranges)
    plain = load_file(path)
    targets = {name: torch.empty_like(tensor).fill_(0) for name, tensor in plain.items()}
    del plain

    def load() -> None:
        files.read(path, into=parts)

    def raw() -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            weights_file.read_ranges(file, ranges)
        finally:
            os.close(file)

    def stock() -> None:
        for name, tensor in load_file(path).items():
            targets[name].copy_(tensor)

    cold = in_turns({"load": load, "raw": raw, "stock": stock}, rounds, lambda: files.drop(path))
    source = torch.empty(size, dtype=torch.uint8).fill_(1)
    places = [(ctypes.addressof(ctypes.c_ubyte.from_buffer(memory)), len(memory)) for _, memory in ranges]

    def memcpy() -> None:
        at = source.data_ptr()
        for place, length in places:
            ctypes.memmove(place, at, length)
            at += length

    warm = in_turns({"load": load, "raw": raw, "stock": stock, "memcpy": memcpy}, rounds, lambda: files.heat(path))
    facts = {"MB read": round(size / 1e6, 1), "tensors": len(ranges)}
    cold_legs = {name: summary(taken) for name, taken in cold.items()}
    speed = {"GB/s cold, least": round(size / 1e9 / min(cold["load"]), 2)}
    return [
        Figure("P6a", [min(cold["raw"]) / min(cold["load"])], rounds, cold_legs,
               {**facts, **speed, "ratio of medians": round(_middle(cold["raw"]) / _middle(cold["load"]), 3)}),
        Figure("P6b", ratios(warm["memcpy"], warm["load"]), rounds,
               {name: summary(taken) for name, taken in warm.items()},
               {**facts, "GB/s warm, least": round(size / 1e9 / min(warm["load"]), 2)}),
        Figure("P6c", ratios(cold["stock"], cold["load"]), rounds, cold_legs,
               {"stock warm / load warm": round(min(warm["stock"]) / min(warm["load"]), 3)}),
    ]  # fmt: skip


def peak(paths: Sequence[Path], rounds: int) -> Figure:
    """P6e: a load beside a resident checkpoint whose modules it takes, its own copy in RAM kept."""
    size = paths[0].stat().st_size
    values = [_taken("3", paths) / size for _ in range(rounds)]
    # With room for one copy only, a load takes the memory of the one before.
    again = _taken("1.5", paths) / size
    facts = {"with the copy in the memory of the one before": round(again, 3), "file MB": round(size / 1e6, 1)}
    return Figure("P6e", values, rounds, facts=facts)


def _taken(copies: str, paths: Sequence[Path]) -> int:
    command = [sys.executable, "-m", "benchmarks.models.memory", copies, *map(str, paths)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return int(told.splitlines()[-1])


def _middle(taken: Sequence[float]) -> float:
    return statistics.median(taken)
