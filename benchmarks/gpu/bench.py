"""One checkpoint on one device: an engine, what runs are made of, and what they gave."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from streamapp.engine import Engine, Event, Job, LoRA


@dataclass(frozen=True)
class Result:
    """One line: a figure with its goal, or something that must hold (``passed``)."""

    id: str
    what: str
    value: float
    floor: float | None = None
    more: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    must: bool = False

    @property
    def passed(self) -> bool:
        """Whether it keeps its floor, where it has one."""
        if self.floor is None:
            return True
        return self.value >= self.floor if self.more else self.value <= self.floor


@dataclass(frozen=True)
class Bench:
    """Where and what is measured.

    Args:
        family: ``sd15`` or ``sdxl``.
        folder: of the checkpoint.
        side: pixels.
        quick: few rounds.
    """

    family: str
    folder: Path
    device: str
    side: int
    quick: bool

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.family} {self.side}²"

    def rounds(self, many: int) -> int:
        """How often something is done."""
        return max(2, many // 10) if self.quick else many

    def engine(self, **given: Any) -> Engine:
        """With the checkpoint ``m``."""
        made = Engine(**{"device": self.device, "dtype": "auto", **given})
        made.load("m", self.folder, self.family)
        return made

    def unet(self, engine: Engine) -> Any:
        """The module that an engine draws with."""
        return getattr(engine, "_checkpoints")["m"]._unet  # noqa: B009 (for measuring only)

    def job(self, seed: int = 0, steps: int = 20, loras: Sequence[LoRA] = (), **given: Any) -> Job:
        """One picture, one row, as a latent."""
        fixed: dict[str, Any] = {"prompt": "a frog", "guidance_scale": 1.0, "output": "latent", **given}
        size: Any = {"width": self.side, "height": self.side}
        return Job("m", num_inference_steps=steps, seed=seed, loras=tuple(loras), **size, **fixed)

    def synchronize(self) -> None:
        """Until the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int) -> float:
        """Median of some runs, after two that do not count."""
        taken = []
        for number in range(rounds + 2):
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            if number >= 2:
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def full_ticks(self, engine: Engine, rows: int) -> list[dict[str, Any]]:
        """The figures of an engine's ticks with so many rows."""
        return [tick for tick in engine.stats()["ticks"] if tick["rows"] == rows]


def latents(events: Sequence[Event]) -> dict[str, Any]:
    """By job."""
    return {event.job_id: event.value for event in events if event.kind == "image"}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max|a − b| / max|b|."""
    a, b = ours.detach().float().cpu(), theirs.detach().float().cpu()
    return float((a - b).abs().max() / b.abs().max())
