"""Rate-limited logs of the Kafka client: a broker that is down costs a line now and then, not hundreds a second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

INTERVAL = 10.0
_MAX_KEYS = 500


class RateLimit(logging.Filter):
    """Passes the first record of a kind and then one per interval, which says how many were left out.

    A kind is logger, level and message template. Records below ``WARNING`` pass untouched.
    """

    def __init__(self, interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._interval, self._clock = interval, clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; a logged one may get the count of those left out appended."""
        if record.levelno < logging.WARNING:
            return True
        now = self._clock()
        key = (record.name, record.levelno, str(record.msg))
        with self._lock:
            since, dropped = self._seen.get(key, (None, 0))
            if since is not None and now - since < self._interval:
                self._seen[key] = (since, dropped + 1)
                return False
            if len(self._seen) >= _MAX_KEYS:
                self._seen.clear()
            self._seen[key] = (now, 0)
        if dropped:
            record.msg = f"{record.msg} ({dropped} more like this in {self._interval:.0f} s)"
        return True


_limit = RateLimit()


def limit_client_logs() -> None:
    """Put the limit on every logger of the Kafka client and of this package; safe to call again."""
    # A filter works on the records of its own logger only, so each module's logger gets it.
    for name in list(logging.root.manager.loggerDict):
        if name == "aiokafka" or name.startswith(("aiokafka.", "streamapp.broker.")):
            logging.getLogger(name).addFilter(_limit)
