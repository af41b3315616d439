"""P1a and P11: how much of the engine's ticks is the denoiser's own forward.

Every tick of the engine is paired with one raw forward of the same row count, before or after it by chance, so that
both see the same machine.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import models
from benchmarks.engine.figures import Figure, ratios, summary
from streamapp.engine import Engine, Job

CAP = 8
REQUESTS = 64
PROMPTS = 8
#: Requests that arrive at once, then one more a tick.
FIRST = 12
STEPS = (6, 8, 10, 12, 16)
#: What nearly all requests of a real service ask for; P11b takes it, so that joins are as frequent as there.
COMMON_STEPS = 30
SAMPLERS = ("Euler", "Euler a", "DPM++ 2M", "DDIM", "UniPC")


@dataclass(frozen=True)
class Kind:
    """A denoiser to measure with: its family, what a raw forward takes, samplers, and where the engine keeps it."""

    name: str
    family: str
    inputs: Callable[[int], dict[str, Any]]
    samplers: Sequence[str]
    attribute: str


UNET = Kind("U-Net", "sd15", models.unet_inputs, SAMPLERS, "_unet")
DIT = Kind("DiT", "flux", models.flux_inputs, ("Euler", "DPM++ 2M", "UniPC"), "_transformer")


@dataclass
class Pairs:
    """Seconds of ticks and of raw forwards, by the rows of the tick; the forward's own part of each tick."""

    wall: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    waiting: list[bool] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    raw: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))


def requests(samplers: Sequence[str] = SAMPLERS) -> list[Job]:
    """The 64 requests: steps, samplers and prompts mixed; guidance of one, so that a row is a sample."""
    chance = random.Random(7)
    return [
        Job(
            model="m",
            prompt=f"apple {number % PROMPTS}",
            width=models.SIDE,
            height=models.SIDE,
            num_inference_steps=chance.choice(STEPS),
            guidance_scale=1.0,
            sampler=chance.choice(samplers),
            seed=number,
            output="latent",
        )
        for number in range(REQUESTS)
    ]


class Watched:
    """An engine whose ticks are timed beside raw forwards of the denoiser."""

    def __init__(self, folder: Path, cap: int, kind: Kind = UNET) -> None:
        self.engine = Engine(max_batch_rows=cap)
        self.engine.load("m", folder, kind.family)
        self.denoiser: Any = getattr(self.engine._checkpoints["m"], kind.attribute)
        self._inputs = {rows: kind.inputs(rows) for rows in range(1, cap + 1)}
        self._began = 0.0
        self._spent = 0.0
        self._submitting = 0.0
        self.denoiser.register_forward_pre_hook(self._begin)
        self.denoiser.register_forward_hook(self._end)

    def submit(self, job: Job) -> None:
        """Submit; the time counts to the next tick."""
        began = time.perf_counter()
        self.engine.submit(job)
        self._submitting += time.perf_counter() - began

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self._spent = time.perf_counter() - self._began

    @torch.inference_mode()
    def raw(self, rows: int) -> float:
        """Seconds of one forward."""
        given = self._inputs[rows]
        began = time.perf_counter()
        self.denoiser(**given)
        return time.perf_counter() - began

    def tick(self, pairs: Pairs, chance: random.Random) -> None:
        """One tick and one raw forward of as many rows as the last one had."""
        last = pairs.rows[-1] if pairs.rows else 1
        first = chance.random() < 0.5
        if first:
            pairs.raw[last].append(self.raw(last))
        began = time.perf_counter()
        self.engine.step()
        wall = time.perf_counter() - began + self._submitting
        self._submitting = 0.0
        inside = self._spent
        stats = self.engine.stats()
        rows = stats["ticks"][-1]["rows"]
        pairs.wall.append(wall)
        pairs.inside.append(inside)
        pairs.rows.append(rows)
        pairs.waiting.append(stats["waiting"] > 0)
        if not first:
            pairs.raw[rows].append(self.raw(rows))


def trace(watched: Watched, jobs: Sequence[Job], chance: random.Random) -> Pairs:
    """All requests, joins staggered."""
    pairs = Pairs()
    queue = list(jobs)
    for job in queue[:FIRST]:
        watched.submit(job)
    del queue[:FIRST]
    while not watched.engine.idle:
        watched.tick(pairs, chance)
        if queue:
            watched.submit(queue.pop(0))
    return pairs


def efficiency(folders: Mapping[Kind, Path], rounds: int) -> Figure:
    """P1a on the U-Net and on the transformer; the worse counts."""
    values: list[float] = []
    legs: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    fills = []
    for kind, folder in folders.items():
        roof, wall, fill = _traced(folder, kind, rounds)
        found = ratios(roof, wall)
        values += found
        legs |= {f"{kind.name} raw": summary(roof), f"{kind.name} engine": summary(wall)}
        facts[kind.name] = [round(value, 4) for value in found]
        fills.append(fill)
    return Figure("P1a", values, rounds, legs, {**facts, "rows / cap while anything waits": min(fills)})


def _traced(folder: Path, kind: Kind, rounds: int) -> tuple[list[float], list[float], float]:
    """By round: seconds of raw forwards and of the engine between the first and the last full batch; how full."""
    watched = Watched(folder, CAP, kind)
    chance = random.Random(1)
    jobs = requests(kind.samplers)
    trace(watched, jobs, chance)
    roof, wall, fill = [], [], []
    for _ in range(rounds):
        pairs = trace(watched, jobs, chance)
        full = [place for place, rows in enumerate(pairs.rows) if rows == CAP]
        span = range(full[0], full[-1] + 1)
        medians = {rows: statistics.median(seconds) for rows, seconds in pairs.raw.items()}
        roof.append(sum(medians[pairs.rows[place]] for place in span))
        wall.append(sum(pairs.wall[place] for place in span))
        fill.append(statistics.mean(rows / CAP for rows, more in zip(pairs.rows, pairs.waiting, strict=True) if more))
    watched.engine.close()
    return roof, wall, min(fill)


def alone(folder: Path, rounds: int) -> Figure:
    """P11: one sample at a time."""
    watched = Watched(folder, 1)
    chance = random.Random(2)
    ticks, forwards = [], []
    for number in range(rounds + PROMPTS):
        pairs = Pairs()
        watched.submit(requests()[number % REQUESTS])
        while not watched.engine.idle:
            watched.tick(pairs, chance)
        if number >= PROMPTS:  # by then all are encoded
            ticks.append(statistics.mean(pairs.wall))
            forwards.append(statistics.mean(pairs.raw[1]))
    watched.engine.close()
    return Figure("P11", ratios(ticks, forwards), rounds, {"tick": summary(ticks), "forward": summary(forwards)})


def share(folder: Path, rounds: int) -> Figure:
    """P11b: what is left of full ticks without their own forward."""
    watched = Watched(folder, CAP)
    chance = random.Random(3)
    pairs = Pairs()
    jobs = [replace(job, num_inference_steps=COMMON_STEPS) for job in requests()]
    number = 0
    while len(pairs.wall) < rounds + 10:
        if watched.engine.stats()["waiting"] < 2:
            watched.submit(jobs[number % REQUESTS])
            number += 1
        watched.tick(pairs, chance)
    full = [place for place, rows in enumerate(pairs.rows) if rows == CAP and place >= 10]
    rest = [pairs.wall[place] - pairs.inside[place] for place in full]
    wall = [pairs.wall[place] for place in full]
    watched.engine.close()
    legs = {"tick": summary(wall), "not forward": summary(rest)}
    return Figure("P11b", ratios(rest, wall), len(full), legs)
