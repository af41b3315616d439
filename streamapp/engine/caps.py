"""How many samples may share a tick, until measured otherwise."""

from __future__ import annotations

from collections.abc import Iterable

from streamapp.engine.sample import Sample

#: Largest area in pixels → samples at a time; beyond the last: two.
DEFAULTS = ((512 * 512, 16), (1024 * 1024, 8))


def default_samples(width: int, height: int) -> int:
    """Samples of this size that fit, by default: 16 up to 512², 8 up to 1024², 2 above."""
    return next((samples for area, samples in DEFAULTS if width * height <= area), 2)


class Caps:
    """The row budget of a tick. A guided sample takes two rows."""

    def __init__(self, max_rows: int | None = None) -> None:
        self.max_rows = max_rows

    def rows(self, width: int, height: int) -> int:
        """Rows of one tick at this size; never less than one guided sample."""
        default = 2 * default_samples(width, height)
        return max(2, default if self.max_rows is None else min(default, self.max_rows))

    def fits(self, running: Iterable[Sample], sample: Sample) -> bool:
        """Whether ``sample`` may join the ``running`` ones of its key."""
        used = sum(other.rows for other in running)
        return used == 0 or used + sample.rows <= self.rows(sample.job.width, sample.job.height)
