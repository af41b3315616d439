"""The noise that a sample's solver takes while it is drawn, in the pipeline's own order of draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from streamapp.engine.solver import RANDN, Schedule


@dataclass(frozen=True, eq=False)
class Noise:
    """A sample's own source of noise; what it gave so far is in ``generator``, so a parked sample draws on from there.

    Attributes:
        kinds: per denoiser call what is drawn; see :class:`~streamapp.engine.solver.Schedule`.
        sigmas: range of the Brownian path.
        seed: of the Brownian path, whose values depend on it and on the interval only.
        shape: of a draw, the batch's one included.
        generator: of everything else.
    """

    kinds: tuple[str | tuple[float, float] | None, ...]
    sigmas: tuple[float, float]
    seed: int
    shape: tuple[int, ...]
    generator: torch.Generator

    @classmethod
    def of(cls, schedule: Schedule, generator: torch.Generator, seed: int, shape: tuple[int, ...]) -> Noise:
        """The noise of one sample with latents of ``shape``."""
        return cls(schedule.noise, schedule.sigmas, seed, (1, *shape), generator)

    def __call__(self, step: int) -> torch.Tensor | None:
        """What call ``step`` takes, of the latents' shape on the CPU; None when nothing. Call it once per step."""
        kind = self.kinds[step]
        if kind is None:
            return None
        if kind == RANDN:
            return torch.randn(self.shape, generator=self.generator)[0]
        start, end = (torch.tensor(float(sigma)) for sigma in kind)
        noise: torch.Tensor = self._path(start, end)[0]
        return noise

    @cached_property
    def _path(self) -> Any:
        from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

        return BrownianTreeNoiseSampler(torch.zeros(self.shape), *self.sigmas, self.seed)
