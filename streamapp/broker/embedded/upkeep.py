"""Keeping the log bounded: compaction, retention by time and by size, in steps of one short transaction.

What never changes: offsets, and the newest record of a partition. The newest record stays even when it is old, a
tombstone or the only one, because the end of a partition is read from it and a recovering table waits for it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from streamapp.broker.embedded import schema
from streamapp.broker.embedded.partition import Partition

if TYPE_CHECKING:
    from streamapp.broker.embedded.log import Log

CHUNK = 500
#: Compaction pays when the records written since the last one could be half of the partition.
MIN_DIRTY = 1000
#: How long a tombstone stays readable (Kafka's ``delete.retention.ms``), in milliseconds.
TOMBSTONE_MS = 24 * 3600 * 1000
#: Bytes of a record, as :func:`record_size` counts them.
LENGTH = "100 + LENGTH(COALESCE(key, '')) + LENGTH(COALESCE(value, ''))"
CHECK_BYTES = 4 * 1024**2


class Upkeep:
    """The cleaning of one log, called by its writer thread only."""

    def __init__(self, log: Log, connection: sqlite3.Connection) -> None:
        self._log = log
        self._work: Iterator[None] | None = None
        self._unchecked = 0
        self._connection = connection

    def grown(self, size: int) -> None:
        """Note how many bytes were appended."""
        self._unchecked += size

    @property
    def busy(self) -> bool:
        """Whether a cleaning is under way."""
        return self._work is not None

    @property
    def pressing(self) -> bool:
        """Whether so much was written that the size must be looked at before the next interval."""
        return self._work is None and self._unchecked >= min(CHECK_BYTES, self._log.max_bytes // 8)

    def begin(self) -> None:
        """Start a cleaning, unless one is under way."""
        if self._work is None:
            self._unchecked = 0
            self._work = self._clean()

    def step(self) -> None:
        """Do one chunk inside the caller's transaction."""
        if self._work is None:
            return
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        except BaseException:
            self._work = None
            raise

    def _clean(self) -> Iterator[None]:
        for partition in self._log.partitions():
            if partition.compacted:
                yield from self._compact(partition)
            yield from self._expire(partition)
        yield from self._shrink()

    def _rows(self, sql: str, *values: object) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def _delete(self, partition: Partition, offsets: list[int]) -> None:
        """Delete records; the newest of the partition is the caller's to spare."""
        self._connection.executemany(
            "DELETE FROM records WHERE partition=? AND offset=?", [(partition.id, offset) for offset in offsets]
        )
        first = self._rows("SELECT MIN(offset) FROM records WHERE partition=?", partition.id)[0][0]
        partition.first = partition.end if first is None else first

    def _compact(self, partition: Partition) -> Iterator[None]:
        """Keep the newest record of each key, as Kafka's log cleaner does."""
        end = partition.end
        if partition.dirty < max(MIN_DIRTY, partition.kept // 2):
            return
        partition.dirty = 0
        newest: dict[bytes, int] = {}
        expired = time.time_ns() // 1_000_000 - TOMBSTONE_MS
        obsolete: list[int] = []
        start = 0
        while True:
            rows = self._rows(
                "SELECT offset, key, value IS NULL AND timestamp < ? FROM records "
                "WHERE partition=? AND offset>=? AND offset<? ORDER BY offset LIMIT ?",
                expired, partition.id, start, end, CHUNK,
            )  # fmt: skip
            if not rows:
                break
            for offset, key, forgotten in rows:
                before = newest.pop(key, None)
                if before is not None:
                    obsolete.append(before)
                if forgotten and offset < end - 1:
                    obsolete.append(offset)
                else:
                    newest[key] = offset
            start = rows[-1][0] + 1
            yield
        partition.kept = len(newest)
        for index in range(0, len(obsolete), CHUNK):
            self._delete(partition, obsolete[index : index + CHUNK])
            yield

    def _expire(self, partition: Partition) -> Iterator[None]:
        """Drop what is older than ``retention.ms`` and what is above ``retention.bytes``, like Kafka, read or not."""
        if partition.retention_ms >= 0:
            cutoff = time.time_ns() // 1_000_000 - partition.retention_ms
            while True:
                rows = self._oldest(partition, partition.end - 1)
                old = [offset for offset, timestamp, _ in rows if timestamp < cutoff]
                # Stops at the first young record: offsets stay in one piece.
                old = [offset for offset, row in zip(old, rows, strict=False) if offset == row[0]]
                if not old:
                    break
                self._delete(partition, old)
                yield
        if partition.retention_bytes >= 0:
            size = f"SELECT COALESCE(SUM({LENGTH}), 0) FROM records WHERE partition=?"  # noqa: S608 - a constant
            excess = self._rows(size, partition.id)[0][0] - partition.retention_bytes
            while excess > 0 and (rows := self._oldest(partition, partition.end - 1)):
                gone = []
                for offset, _, length in rows:
                    if excess <= 0:
                        break
                    gone.append(offset)
                    excess -= length
                self._delete(partition, gone)
                yield

    def _oldest(self, partition: Partition, below: int) -> list[Any]:
        """The oldest records (offset, timestamp, bytes) below an offset."""
        return self._rows(
            f"SELECT offset, timestamp, {LENGTH} FROM records WHERE partition=? AND offset<? ORDER BY offset LIMIT ?",  # noqa: S608
            partition.id, below, CHUNK,
        )  # fmt: skip

    def _shrink(self) -> Iterator[None]:
        """Above the limit, drop what every group has read, then what nobody ever read; else refuse new records."""
        log = self._log
        goal = log.max_bytes
        while (size := schema.live_bytes(self._connection)) > goal:
            goal = log.max_bytes * 9 // 10
            candidates = []
            for partition in log.partitions():
                consumed = log.consumed(partition.tp)
                if not partition.compacted:
                    below = min(partition.end - 1, partition.end if consumed is None else consumed)
                    if partition.first < below:
                        age = self._oldest(partition, below)[0][1]
                        candidates.append((consumed is None, age, partition.id, partition, below))
            if not candidates:
                break
            *_, partition, below = min(candidates, key=lambda item: item[:3])
            self._delete(partition, [row[0] for row in self._oldest(partition, below)])
            yield
        log.full = size > log.max_bytes
