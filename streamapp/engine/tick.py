"""One tick: the forward of a batch, what it cost, what its samples tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from streamapp.engine.admission import Admission
from streamapp.engine.caps import Caps
from streamapp.engine.events import Event
from streamapp.engine.families import Checkpoint
from streamapp.engine.memory import Memory, ran_out, too_large
from streamapp.engine.sample import Sample

#: Ticks whose figures are kept for :meth:`streamapp.engine.engine.Engine.stats`.
KEPT_TICKS = 1000


class MemoryShort(Exception):
    """A batch was too large; ``rows`` may be tried next."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


class Ticks:
    """Runs ticks and keeps their figures.

    Args:
        memory: that ticks are computed in.
        preview_every: ticks of a sample between two previews; 0 for none.
        relieve: waits until nothing else takes memory; whether anything had.
        admission: learns what fits.
    """

    def __init__(
        self,
        caps: Caps,
        memory: Memory,
        clock: Callable[[], float],
        preview_every: int = 0,
        relieve: Callable[[], bool] = lambda: False,
        admission: Admission | None = None,
    ) -> None:
        self._caps = caps
        self._memory = memory
        self._clock = clock
        self._preview_every = preview_every
        self._relieve = relieve
        self._admission = admission
        #: When the tick under way began and the seconds it is expected to take; None: none is, or nobody knows.
        self.under_way: tuple[float, float] | None = None
        self.figures: deque[dict[str, Any]] = deque(maxlen=KEPT_TICKS)

    def run(self, checkpoint: Checkpoint, batch: Sequence[Sample]) -> list[Event]:
        """One step for every sample of a batch; their progress, and previews where they are due.

        Raises:
            MemoryShort: they do not fit into memory together, and none of them has changed.
            EngineError: ``out_of_memory`` for one that does not fit alone.
        """
        rows = sum(sample.rows for sample in batch)
        began = self._clock()
        expected = self._caps.expected(batch[0], rows)
        self.under_way = None if expected is None else (began, expected)
        try:
            forward = self._forward(checkpoint, batch, rows)
        finally:
            self.under_way = None
        wall = self._clock() - began
        memory = self._memory.peak()
        self._caps.learn(batch[0], rows, wall, memory)
        if memory is not None and self._admission is not None:
            self._admission.learn(batch[0].job, rows, memory[0])
        figures = {"key": batch[0].key, "samples": len(batch), "rows": rows, "wall_s": wall, "forward_s": forward}
        self.figures.append(figures)
        for sample in batch:
            sample.step += 1
            sample.spent("denoise", wall)
        events = [Event(s.job_id, s.index, "progress", (s.step, s.steps)) for s in batch]
        return events + self._previews(checkpoint, batch) if self._preview_every else events

    def _forward(self, checkpoint: Checkpoint, batch: Sequence[Sample], rows: int) -> float:
        """Of the whole batch; seconds of the denoiser's own."""
        fitted = self._fitted(lambda: checkpoint.denoise(batch))
        if not fitted and self._relieve():
            self._memory.free()
            fitted = self._fitted(lambda: checkpoint.denoise(batch))
        if fitted:
            return checkpoint.forward_s()
        if len(batch) == 1:
            raise too_large(batch[0].job)
        raise MemoryShort(self._caps.halve(batch[0], rows))

    def _fitted(self, work: Callable[[], None]) -> bool:
        """Whether there was memory for it."""
        try:
            work()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
        else:
            return True
        # Only here: the error's traceback held what the work had taken.
        self._memory.free()
        return False

    def _previews(self, checkpoint: Checkpoint, batch: Sequence[Sample]) -> list[Event]:
        """Small pictures of the samples whose turn it is; a finished one gets its picture instead."""
        due = [s for s in batch if s.step % self._preview_every == 0 and s.step < s.steps]
        pictures = checkpoint.previews(due) if due else []
        return [Event(s.job_id, s.index, "preview", p) for s, p in zip(due, pictures, strict=False) if p is not None]
