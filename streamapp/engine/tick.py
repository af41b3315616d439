"""One tick: the forward of a batch, what it cost, what its samples tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from streamapp.engine.events import Event
from streamapp.engine.families import Checkpoint
from streamapp.engine.sample import Sample

#: Ticks whose figures are kept for :meth:`streamapp.engine.engine.Engine.stats`.
KEPT_TICKS = 1000


class Ticks:
    """Runs ticks and keeps their figures.

    Args:
        preview_every: ticks of a sample between two previews; 0 for none.
    """

    def __init__(self, clock: Callable[[], float], preview_every: int = 0) -> None:
        self._clock = clock
        self._preview_every = preview_every
        self.figures: deque[dict[str, Any]] = deque(maxlen=KEPT_TICKS)

    def run(self, checkpoint: Checkpoint, batch: Sequence[Sample]) -> list[Event]:
        """One step for every sample of a batch; their progress, and previews where they are due."""
        began = self._clock()
        checkpoint.denoise(batch)
        wall = self._clock() - began
        rows = sum(sample.rows for sample in batch)
        self.figures.append({"key": batch[0].key, "samples": len(batch), "rows": rows, "wall_s": wall})
        for sample in batch:
            sample.step += 1
            sample.spent("denoise", wall)
        events = [Event(s.job_id, s.index, "progress", (s.step, s.steps)) for s in batch]
        return events + self._previews(checkpoint, batch) if self._preview_every else events

    def _previews(self, checkpoint: Checkpoint, batch: Sequence[Sample]) -> list[Event]:
        """Small pictures of the samples whose turn it is; a finished one gets its picture instead."""
        due = [s for s in batch if s.step % self._preview_every == 0 and s.step < s.steps]
        pictures = checkpoint.previews(due) if due else []
        return [Event(s.job_id, s.index, "preview", p) for s, p in zip(due, pictures, strict=False) if p is not None]
