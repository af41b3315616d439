"""What the worker asks of an engine, in the worker's own words: orders go in, progress and pictures come out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from streamapp.db import LoraRow, ModelRow, TaskRow
from streamapp.errors import AppError
from streamapp.worker.inputs import Files

#: Stage of :attr:`Drawn.seconds` for the scheduler alone: what making the weights ready took, without any waiting.
LOADED = "loaded"


def tier_of(seconds: Mapping[str, float]) -> str:
    """Where the checkpoint was that a task waited for, from its seconds by stage."""
    return next((tier for tier in ("vram", "ram") if f"load_{tier}" in seconds), "disk")


class EngineCrashed(AppError):
    """The engine's process died while it drew; ``details["suspects"]`` are the ids of the tasks it was drawing."""

    code = "engine_crashed"
    retryable = True


@dataclass(frozen=True)
class Order:
    """One claimed task with the weights it needs, as files, and the picture that it starts from."""

    row: TaskRow
    model: ModelRow
    model_path: Path
    loras: tuple[tuple[LoraRow, Path, float], ...] = ()
    files: Files | None = None
    embeddings: tuple[tuple[LoraRow, Path], ...] = ()
    #: With the file of the picture that each steers by.
    controls: tuple[tuple[LoraRow, Path, bytes], ...] = ()

    @property
    def added(self) -> tuple[LoraRow, ...]:
        """The LoRAs, learned words and ControlNets."""
        styles, words = (row for row, _, _ in self.loras), (row for row, _ in self.embeddings)
        return (*styles, *words, *(row for row, _, _ in self.controls))


@dataclass(frozen=True)
class Progress:
    """Share of the order's denoising that is done, 0..1."""

    share: float


@dataclass(frozen=True)
class Drawn:
    """One finished picture as the engine made it; ``seconds`` by stage (load, encode, denoise, decode).

    ``notes`` say what of the request was left out; ``precision`` is that of the denoiser.
    """

    index: int
    picture: Any
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    precision: str = "float32"


class Drawing(Protocol):
    """An engine as the worker uses it."""

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``restarting``, ``failed`` or ``closed``."""

    @property
    def running(self) -> int:
        """Samples in the engine."""

    @property
    def checkpoints(self) -> Mapping[str, str]:
        """Resident checkpoints by name, with their tier."""

    @property
    def loras(self) -> Mapping[str, str]:
        """Resident LoRAs by name, with their tier."""

    async def start(self) -> None:
        """Begin to start; returns at once or when ready."""

    async def close(self) -> None:
        """End the engine's process."""

    def room(self, width: int, height: int) -> int:
        """Samples of this size in pixels that may join now."""

    async def warm(self, model: ModelRow, path: Path) -> float:
        """Load a checkpoint before anybody asks for it; the seconds it took."""

    async def ahead(self, row: ModelRow | LoraRow, path: Path) -> None:
        """Have weights read into RAM while others draw, unless they are there or nearer."""

    def draw(self, order: Order) -> AsyncIterator[Progress | Drawn]:
        """Draw all images of an order; closing the iterator cancels what is left.

        Raises:
            EngineCrashed: the engine died meanwhile.
            AppError: the order cannot be drawn.
        """
