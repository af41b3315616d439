"""The samples an engine holds, by how far they are: waiting for their encoding, ready to join a tick, running."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from streamapp.engine.caps import Caps
from streamapp.engine.sample import Sample

#: Samples prepared ahead of free room, so that a freed row is filled at the next tick.
AHEAD = 2


class Queue:
    """Every sample is in one place. Keys take turns, so none starves."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._waiting: deque[Sample] = deque()
        self._ready: deque[Sample] = deque()
        self._running: OrderedDict[tuple[Any, ...], list[Sample]] = OrderedDict()

    def __iter__(self) -> Iterator[Sample]:
        """All samples, in the order in which they would be drawn."""
        for samples in self._running.values():
            yield from samples
        yield from self._ready
        yield from self._waiting

    def __bool__(self) -> bool:
        return bool(self._waiting or self._ready or self._running)

    @property
    def waiting(self) -> int:
        """Samples that no tick takes yet."""
        return len(self._waiting) + len(self._ready)

    @property
    def running(self) -> int:
        """Samples that take part in ticks."""
        return sum(len(samples) for samples in self._running.values())

    def find(self, job_id: str, index: int) -> Sample | None:
        """The sample of this image."""
        return next((sample for sample in self if (sample.job_id, sample.index) == (job_id, index)), None)

    def wait(self, sample: Sample) -> None:
        """Queue one that is to be encoded."""
        self._waiting.append(sample)

    def ready(self, sample: Sample) -> None:
        """Queue one that can join a tick."""
        self._ready.append(sample)

    def keep(self, wanted: Callable[[Sample], bool]) -> None:
        """Drop all others."""
        self._waiting = deque(filter(wanted, self._waiting))
        self._ready = deque(filter(wanted, self._ready))
        for key, samples in list(self._running.items()):
            kept = [sample for sample in samples if wanted(sample)]
            if kept:
                self._running[key] = kept
            else:
                del self._running[key]

    def to_encode(self) -> list[Sample]:
        """The next waiting samples of one model that could join soon; empty when enough are ready."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        limit = AHEAD + self._free(first)
        if len(self._ready) >= limit:
            return []
        batch: list[Sample] = []
        while self._waiting and self._waiting[0].job.model == first.job.model and len(batch) < limit:
            batch.append(self._waiting.popleft())
        return batch

    def join(self) -> None:
        """Let ready samples run where their key has room."""
        wanted = Counter[tuple[Any, ...]]()
        if self._ready:
            for sample in self:
                wanted[_size(sample)] += sample.rows
        for _ in range(len(self._ready)):
            sample = self._ready.popleft()
            running = self._running.get(sample.key, [])
            if self._caps.fits(running, sample, wanted[_size(sample)]):
                self._running.setdefault(sample.key, running).append(sample)
            else:
                self._ready.append(sample)

    def part(self, batch: Sequence[Sample], rows: int) -> None:
        """Let no more than this many rows of a running batch go on now; the others wait at the head of the line."""
        running, used = self._running[batch[0].key], 0
        kept: list[Sample] = []
        for sample in running:
            used += sample.rows
            if not kept or used <= rows:
                kept.append(sample)
        self._ready.extendleft(sample for sample in reversed(running) if sample not in kept)
        self._running[batch[0].key] = kept

    def next_batch(self) -> list[Sample]:
        """The samples of the key whose turn it is."""
        if not self._running:
            return []
        key = next(iter(self._running))
        self._running.move_to_end(key)
        return list(self._running[key])

    def _free(self, first: Sample) -> int:
        """Samples of this one's size that still find room."""
        size = (first.job.width, first.job.height)
        used = sum(s.rows for each in self._running.values() for s in each if (s.job.width, s.job.height) == size)
        return max(0, self._caps.rows(*size) - used) // first.rows


def _size(sample: Sample) -> tuple[Any, ...]:
    """What samples share a tick by, as far as is known before they are encoded."""
    return sample.job.model, sample.job.width, sample.job.height
