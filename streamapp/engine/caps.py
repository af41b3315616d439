"""How many rows may share a tick: defaults, then what was measured.

Batching pays only below a model's compute knee: beyond it a larger batch draws no more pictures a second, and every one
of them comes later. So the seconds of a tick are learned by its rows, and a batch grows only while that shortens the
mean time until the waiting samples are drawn.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable
from typing import Any

from streamapp.engine.sample import Sample

#: Largest area in pixels → samples at a time; beyond the last: two.
DEFAULTS = ((512 * 512, 16), (1024 * 1024, 8))
#: Ticks of one row count that are remembered; from how many on they are believed.
REMEMBERED, BELIEVED = 20, 3
#: Ticks below this many seconds count as equally long: what they differ by is noise.
SHORTEST = 1e-3
#: How much longer than now the mean may become, as guessed, for a larger batch to be tried.
CURIOSITY = 1.02
#: Kinds of samples (checkpoint and shape) whose costs are remembered, the latest.
KINDS = 256
#: Kinds, the latest, whose learned batches are told.
TOLD = 16
#: Share of the memory that a batch may be expected to fill.
FULL = 0.95


def default_samples(width: int, height: int) -> int:
    """Samples of this size that fit, by default: 16 up to 512², 8 up to 1024², 2 above."""
    return next((samples for area, samples in DEFAULTS if width * height <= area), 2)


class Costs:
    """Seconds of a tick by its rows, of samples with one key."""

    def __init__(self, size: tuple[int, int], unit: int) -> None:
        #: Width and height in pixels, rows of a sample.
        self.size, self.unit = size, unit
        self._seen: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._peaks: dict[int, int] = {}

    @property
    def largest(self) -> int:
        """Most rows measured."""
        return max(self._seen, default=0)

    def add(self, rows: int, seconds: float, peak: int | None) -> None:
        """A tick was run; ``peak`` is the most bytes it had in use."""
        self._seen[rows].append(max(seconds, SHORTEST))
        if peak is not None:
            self._peaks[rows] = peak

    def times(self, rows: int) -> int:
        """How often this many rows were measured."""
        return len(self._seen[rows]) if rows in self._seen else 0

    def seconds(self, rows: int) -> float:
        """Least seconds of a tick with this many rows; on the line through its neighbours where never measured."""
        if rows in self._seen:
            return min(self._seen[rows])
        known = sorted(self._seen)
        below = [count for count in known if count < rows][-1:]
        above = [count for count in known if count > rows][:1]
        around = [*below, *above] if below and above else known[-2:] if below else known[:1]
        first, last = around[0], around[-1]
        start, end = min(self._seen[first]), min(self._seen[last])
        slope = max(0.0, (end - start) / (last - first)) if last > first else 0.0
        return end + slope * (rows - last)

    def longest(self, rows: int) -> float | None:
        """Most seconds of a tick with this many rows, of the last ones; None until it was seen often enough."""
        return max(self._seen[rows]) if self.times(rows) >= BELIEVED else None

    def fitting(self, limit: int) -> int | None:
        """Rows whose peak stays below ``limit`` bytes, by the line through what was measured; None: not known."""
        if len(self._peaks) < 2:
            return None
        small, *_, large = sorted(self._peaks)
        each = (self._peaks[large] - self._peaks[small]) / (large - small)
        return None if each <= 0 else int((limit - self._peaks[small]) / each) + small


class Caps:
    """The row budget of a tick. A guided sample takes two rows.

    Args:
        max_rows: fixed by the caller: then nothing is learned but what memory allows.
    """

    def __init__(self, max_rows: int | None = None) -> None:
        self.max_rows = max_rows
        self._costs: dict[Hashable, Costs] = {}
        self._ceilings: dict[Hashable, int] = {}

    def rows(self, width: int, height: int) -> int:
        """Rows of one tick at this size before anything is known; never less than one guided sample."""
        default = 2 * default_samples(width, height)
        return max(2, default if self.max_rows is None else min(default, self.max_rows))

    def fits(self, running: Iterable[Sample], sample: Sample, wanted: int) -> bool:
        """Whether ``sample`` may join the ``running`` ones of its key.

        Args:
            wanted: rows of all samples of its model and size that are here, the running ones included.
        """
        used = sum(other.rows for other in running)
        return used == 0 or used + sample.rows <= self.limit(sample, wanted)

    def limit(self, sample: Sample, wanted: int) -> int:
        """Rows of the next ticks of a sample's key, as far as is known, when ``wanted`` rows are to be drawn."""
        most = self.rows(sample.job.width, sample.job.height)
        most = min(most, self._ceilings.get(sample.key, most))
        if self.max_rows is not None:
            return most
        costs = self._costs.get(sample.key)
        return sample.rows if costs is None else self._best(costs, sample.rows, most, wanted)

    def expected(self, sample: Sample, rows: int) -> float | None:
        """Seconds that a tick of a sample's key may well take with this many rows; None where that is not known."""
        costs = self._costs.get(sample.key)
        return None if costs is None else costs.longest(rows)

    def learned(self) -> list[dict[str, Any]]:
        """Samples at a time that pay, of the kinds drawn last; while batches still grow, the most there may be."""
        found = []
        for key, costs in list(self._costs.items())[-TOLD:]:
            default = self.rows(*costs.size)
            most = min(default, self._ceilings.get(key, default))
            rows = most if self.max_rows is not None else self._best(costs, costs.unit, most, most)
            if rows >= 2 * costs.largest:
                rows = most
            model = key[0] if isinstance(key, tuple) and key else ""
            found.append({"model": model, "size": costs.size, "samples": max(1, rows // costs.unit)})
        return found

    @staticmethod
    def _best(costs: Costs, unit: int, most: int, wanted: int) -> int:
        """Rows that draw ``wanted`` ones soonest, in the mean; at most one try beyond what is known.

        Args:
            costs: that were measured.
            unit: rows of a sample.
            most: rows that are allowed.
            wanted: rows that are to be drawn.
        """
        # At most twice what was tried, so that a batch that does not pay is never a large one.
        best = unit
        for rows in range(2 * unit, min(most, wanted, 2 * max(unit, costs.largest)) + 1, unit):
            mean, now = _mean(costs, rows, wanted), _mean(costs, best, wanted)
            tried = costs.times(rows)
            allowed = now * CURIOSITY if rows > costs.largest else now
            if 0 < tried < BELIEVED or mean <= allowed:
                best = rows
        return best

    def learn(self, sample: Sample, rows: int, seconds: float, memory: tuple[int, int] | None) -> None:
        """A tick of this sample's key was run; ``memory`` is its peak and what there is, in bytes."""
        # Taken out and put back, so that the first ones are those that were drawn longest ago.
        known = self._costs.pop(sample.key, None)
        costs = known or Costs((sample.job.width, sample.job.height), sample.rows)
        costs.unit = sample.rows
        self._costs[sample.key] = costs
        while len(self._costs) > KINDS:
            oldest = next(iter(self._costs))
            del self._costs[oldest]
            self._ceilings.pop(oldest, None)
        costs.add(rows, seconds, memory[0] if memory else None)
        fitting = costs.fitting(int(memory[1] * FULL)) if memory else None
        if fitting is not None and fitting < self.rows(sample.job.width, sample.job.height):
            self._ceilings[sample.key] = max(sample.rows, fitting)

    def halve(self, sample: Sample, rows: int) -> int:
        """There was no memory for this many rows: how many may be tried now."""
        self._ceilings[sample.key] = max(sample.rows, rows // 2)
        return self._ceilings[sample.key]

    def forget(self, model: str) -> None:
        """Drop what was learned of a model (the first word of its samples' keys)."""
        for table in (self._costs, self._ceilings):
            for key in [key for key in table if isinstance(key, tuple) and key[:1] == (model,)]:
                del table[key]


def _mean(costs: Costs, rows: int, wanted: int) -> float:
    """Seconds a step until a waiting row is drawn, in the mean, when ``wanted`` are drawn in groups of ``rows``."""
    return costs.seconds(rows) * (wanted / rows + 1) / 2
