"""The database's clock, read often enough to be used without a query: hosts disagree about the time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

#: Seconds between two readings; quartz drifts by less than 0.1 ms per second.
INTERVAL = 60.0


class Clock:
    """Milliseconds of the database's clock; the host's own until the first reading."""

    def __init__(self, read: Callable[[], Awaitable[int]], interval: float = INTERVAL) -> None:
        self._read = read
        self._interval = interval
        self._offset: float | None = None
        self._read_at = 0.0

    def now(self) -> int:
        """The database's clock now, in milliseconds."""
        if self._offset is None:
            return int(time.time() * 1000)
        return int(time.monotonic() * 1000 + self._offset)

    async def sync(self) -> None:
        """Read the database's clock if the last reading is old; raises ``Unavailable`` like any query."""
        began = time.monotonic()
        if self._offset is not None and began - self._read_at < self._interval:
            return
        value = await self._read()
        ended = time.monotonic()
        self._offset = value - (began + ended) / 2 * 1000
        self._read_at = ended
