"""What goes wrong and when, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["worker", "engine", "stall", "broker", "database", "storage"]


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault: ``at`` seconds after the first submit, ``down`` seconds until it is started again."""

    at: float
    kind: Kind
    victim: int
    down: float


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each fault happens in one run.

    ``slow`` is the share of tasks that take a tenth of a second a step, and with them whoever shares their ticks: a
    worker shall draw something most of the time, so that kills hit it, and keep up.
    """

    worker: int = 6
    engine: int = 6
    stall: int = 1
    broker: int = 2
    database: int = 1
    storage: int = 1
    slow: float = 0.5

    @classmethod
    def short(cls) -> Mix:
        """One of each: a run of about a minute."""
        return cls(2, 2, 1, 1, 1, 1)

    @classmethod
    def alone(cls) -> Mix:
        """What can happen to one process without servers."""
        return cls(4, 4, 0, 0, 0, 0, slow=0.06)


#: Seconds between a kill and the start that follows; a stall must outlast membership (10 s) and lease (15 s), so that
#: another worker takes what the stalled one was drawing.
DOWN: dict[Kind, tuple[float, float]] = {
    "worker": (0.5, 4.0),
    "engine": (0.0, 0.0),
    "stall": (18.0, 24.0),
    "broker": (3.0, 8.0),
    "database": (3.0, 8.0),
    "storage": (3.0, 8.0),
}


def plan(seed: int, mix: Mix, span: float, victims: int) -> list[Fault]:
    """The faults of a run over ``span`` seconds among ``victims`` workers, in order of time."""
    chance = random.Random(seed)
    faults = [
        Fault(chance.uniform(0.05, 0.95) * span, kind, chance.randrange(victims), chance.uniform(*DOWN[kind]))
        for kind in DOWN
        for _ in range(getattr(mix, kind))
    ]
    return sorted(faults)
