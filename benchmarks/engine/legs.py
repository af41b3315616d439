"""Legs taken in turns: every round runs all of them once, in an order of its own."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping

#: Rounds that are run before any counts.
WARM_UP = 2


def interleaved(
    legs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Seconds of each leg by round. The collector rests meanwhile: a pause of it would hit any leg."""
    order, chance = list(legs), random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in legs}
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds + warm_up):
            chance.shuffle(order)
            for name in order:
                began = time.perf_counter()
                legs[name]()
                if number >= warm_up:
                    taken[name].append(time.perf_counter() - began)
    finally:
        gc.enable()
    return taken
