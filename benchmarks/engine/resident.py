"""P5: what a combination that was never active adds between two ticks, with few and with many adapters resident."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import models
from benchmarks.engine.figures import Figure, ratios, summary
from benchmarks.engine.legs import interleaved
from benchmarks.engine.mixed import Peft, adapter, targets
from streamapp.engine import Engine, Job, LoRA

MANY = 256
#: A combination takes five different adapters, so there are not fewer.
FEW = 5
RANK = 4


class Side:
    """An engine with so many adapters, in which a batch of seven runs and an eighth row comes and goes."""

    def __init__(self, folder: Path, resident: int) -> None:
        self.engine = Engine(max_batch_rows=8)
        self.engine.load("m", folder)
        checkpoint: Any = self.engine._checkpoints["m"]
        layers = targets(checkpoint._unet)
        self.names = [f"a{number}" for number in range(resident)]
        made = [adapter(name, layers, RANK) for name in self.names]
        for one in made:
            # What loading a file does once it is read.
            parts = {"unet": one.parts["it"], "text_encoder": {}}
            object.__setattr__(one, "parts", parts)
            checkpoint._mixer.attach(one)
            checkpoint._adapters[one.name] = one
        self._weights = itertools.count(1)
        self._spent = 0.0
        self._began = 0.0
        checkpoint._unet.register_forward_pre_hook(self._begin)
        checkpoint._unet.register_forward_hook(self._end)
        for number in range(7):
            self.engine.submit(self._job(150, [self._loras(number)[0]], number))
        self.engine.step()

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self._spent += time.perf_counter() - self._began

    def _loras(self, number: int) -> list[LoRA]:
        places = [(number * 37 + step * 51) % len(self.names) for step in range(5)]
        distinct = list(dict.fromkeys(places))
        distinct += [place for place in range(len(self.names)) if place not in distinct][: 5 - len(distinct)]
        weight = 0.1 + next(self._weights) % 1500 / 1000
        return [LoRA(self.names[place], weight) for place in distinct]

    def _job(self, steps: int, loras: list[LoRA], seed: int) -> Job:
        return Job(
            "m",
            "apple",
            width=models.SIDE,
            height=models.SIDE,
            num_inference_steps=steps,
            guidance_scale=1.0,
            sampler="DDIM",
            seed=seed,
            loras=loras,
            output="latent",
        )

    def join(self, number: int) -> float:
        """Seconds beside the forward from a submit to the end of its first tick."""
        if self.engine.stats()["running"] < 7:
            self.engine.submit(self._job(150, [self._loras(number)[0]], number))
            self.engine.step()
        self._spent = 0.0
        began = time.perf_counter()
        job = self.engine.submit(self._job(20, self._loras(number), number))
        self.engine.step()
        spent = time.perf_counter() - began - self._spent
        self.engine.cancel(job)
        return spent

    def plain(self) -> float:
        """Seconds beside the forward of a tick that nobody joins."""
        self._spent = 0.0
        began = time.perf_counter()
        self.engine.step()
        return time.perf_counter() - began - self._spent


def activation(folder: Path, unet: torch.nn.Module, rounds: int) -> Figure:
    """P5."""
    sides = {FEW: Side(folder, FEW), MANY: Side(folder, MANY)}
    taken: dict[str, list[float]] = {f"joins, {count} resident": [] for count in sides}
    numbers = itertools.count()
    steady: dict[int, list[float]] = {count: [] for count in sides}

    def join(count: int) -> Callable[[], None]:
        def run() -> None:
            taken[f"joins, {count} resident"].append(sides[count].join(next(numbers)))
            steady[count].append(sides[count].plain())

        return run

    interleaved({str(count): join(count) for count in sides}, rounds)
    few, many = taken.values()
    for side in sides.values():
        side.engine.close()
    peft = Peft(unet)
    stock = interleaved({"set_adapters, 8 resident": lambda: peft.activate("a1")}, rounds)
    legs = {name: summary(spent[2:]) for name, spent in [*taken.items()]} | {
        "nobody joins, 256 resident": summary(steady[MANY][2:]),
        "peft set_adapters, 8 resident": summary(stock["set_adapters, 8 resident"]),
    }
    return Figure("P5", ratios(many[2:], few[2:]), rounds, legs)
