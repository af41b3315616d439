"""What the log keeps in memory about a partition: its bounds, its rules and its newest records."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from streamapp.broker.record import TP, Record

TAIL_BYTES = 256 * 1024


class NewRecord(NamedTuple):
    """A record to append; ``timestamp`` in milliseconds since the epoch, ``None`` for now."""

    tp: TP
    key: bytes | None
    value: bytes | None
    timestamp: int | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Partition:
    """The in-memory state of one partition: its bounds and its newest records."""

    def __init__(self, number_id: int, tp: TP, first: int, end: int, config: Mapping[str, str]) -> None:
        self.id, self.tp, self.first, self.end = number_id, tp, first, end
        self.configure(config)
        #: Records written since the last compaction, and those it kept: what another one could remove, and its cost.
        self.dirty, self.kept = end - first, 0
        self.tail: deque[Record] = deque()
        self.tail_bytes = 0

    def configure(self, config: Mapping[str, str]) -> None:
        """Take over a topic's configuration (Kafka's names; ``-1`` for no limit)."""
        policy = config.get("cleanup.policy", "delete")
        self.compacted = "compact" in policy
        self.retention_ms = int(config.get("retention.ms", "-1")) if "delete" in policy else -1
        self.retention_bytes = int(config.get("retention.bytes", "-1")) if "delete" in policy else -1

    def remember(self, record: Record) -> None:
        """Append to the tail and forget its oldest records above the limit."""
        self.tail.append(record)
        self.tail_bytes += record_size(record)
        while self.tail_bytes > TAIL_BYTES and len(self.tail) > 1:
            self.tail_bytes -= record_size(self.tail.popleft())

    def peek(self, start: int, limit: int) -> list[Record] | None:
        """Records from ``start`` on if the tail has them all, else ``None``."""
        if start >= self.end:
            return []
        if not self.tail or start < self.tail[0].offset:
            return None
        skip = start - self.tail[0].offset
        return list(islice(self.tail, skip, skip + limit))


def record_size(record: Record | NewRecord) -> int:
    """About how many bytes a record takes."""
    return 100 + len(record.key or b"") + len(record.value or b"")
