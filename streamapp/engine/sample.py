"""The one mutable object of the engine: one image on its way from noise to picture."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from streamapp.engine.job import Job


@dataclass(eq=False)
class Shared:
    """Tensors that all samples of a job read, made on first use.

    It has no fields: a parked sample leaves them out, and they are made again where it is resumed.
    """

    def __post_init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


@dataclass(eq=False, slots=True)
class Sample:
    """One image being drawn.

    ``latents`` is the family's own (torch: ``(4, h, w)`` float32 on the device); ``memory`` holds the solver's kept
    tensors, ``(slots, 4, h, w)``. ``step`` counts denoiser calls done, of ``steps`` (second-order solvers call twice
    a step); ``input`` is what it keeps of the picture that it is painted into; ``rows`` are the denoiser rows it takes
    in a tick, two when guided. A sample joins with its prompt encoded and leaves when ``step == steps``.
    """

    job_id: str
    index: int
    job: Job
    key: tuple[Any, ...] = ()
    latents: Any = None
    memory: Any = None
    schedule: Any = None
    noise: Any = None
    cond: Any = None
    uncond: Any = None
    input: Any = None
    rows: int = 1
    adapters: tuple[tuple[str, float], ...] = ()
    step: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shared: Shared = field(default_factory=Shared)

    @property
    def seed(self) -> int:
        """Image i of a job uses its seed + i."""
        return self.job.seed + self.index

    def spent(self, stage: str, seconds: float) -> None:
        """Add to the wall seconds of a stage (a tick counts whole for each of its samples)."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
