"""Which pictures a device can draw at all: a table by its memory, then what was measured. No torch here."""

from __future__ import annotations

from streamapp.engine.errors import EngineError
from streamapp.engine.job import Job

GIB = 1024**3
#: Bytes of a device (of nominal 4, 8 and 16 GB: a little of each is taken) → pixels of the largest picture.
TABLE = ((14 * GIB, 2048 * 2048), (7 * GIB, 1024 * 1024), (0, 512 * 512))
#: Families that need the memory of the table's first line, whatever the size.
LARGE = frozenset({"sdxl", "sd3", "flux", "qwen_image"})
#: Share of the memory that a tick may be expected to fill.
FULL = 0.95


class Admission:
    """Refuses what does not fit.

    Args:
        size: bytes of the device; None where nobody counts: then all is let in.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        #: By model, pixels of all rows of the smallest and of the largest tick, with the most bytes in use.
        self._ticks: dict[str, dict[int, int]] = {}

    def check(self, job: Job, family: str, rows: int) -> None:
        """Refuse a job that would be short of memory even alone.

        Raises:
            EngineError: ``does_not_fit``, saying what would.
        """
        if self._size is None:
            return
        pixels = job.width * job.height
        fits = self._measured(job.model, rows)
        if fits is None:
            fits = next(most for least, most in TABLE if self._size >= least)
            if family in LARGE and self._size < TABLE[0][0]:
                message = f"{family} needs a device with 16 GB, this one has {self._size / GIB:.0f}; take another model"
                raise EngineError("does_not_fit", message, field="model")
        if pixels > fits:
            side = int(fits**0.5) // 64 * 64
            message = f"{job.width}x{job.height} pixels do not fit into this device's {self._size / GIB:.0f} GB;"
            raise EngineError("does_not_fit", f"{message} ask for at most {side}x{side}", field="width")

    def learn(self, job: Job, rows: int, peak: int) -> None:
        """A tick of this job's model with so many rows had at most ``peak`` bytes in use."""
        known = self._ticks.setdefault(job.model, {})
        known[rows * job.width * job.height] = peak
        for pixels in sorted(known)[1:-1]:
            del known[pixels]

    def forget(self, model: str) -> None:
        """Drop what was measured of a model."""
        self._ticks.pop(model, None)

    def _measured(self, model: str, rows: int) -> int | None:
        """Pixels of the largest picture by the line through what was measured; None: not known."""
        known = self._ticks.get(model, {})
        if len(known) < 2 or self._size is None:
            return None
        (few, low), (many, high) = sorted(known.items())
        each = (high - low) / (many - few)
        # What fitted once fits again.
        return many // rows if each <= 0 else max(many, int(few + (self._size * FULL - low) / each)) // rows
