"""A partitioned, durable, append-only log in one SQLite file. Knows nothing of Faust.

One thread writes. It takes everything that was handed over while the last transaction was being committed and
writes it in one (group commit), so a lone record is durable in well under a millisecond and a crowd shares the
cost. A record becomes visible to readers, and its offset is told, only after its transaction was committed.
The newest records of each partition are also kept in memory, so a consumer that keeps up never reads the file.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import orjson

from streamapp.broker.admin import TopicSpec, check_partitions
from streamapp.broker.embedded import lock, schema
from streamapp.broker.embedded.partition import NewRecord, Partition, record_size
from streamapp.broker.embedded.upkeep import Upkeep
from streamapp.broker.embedded.writer import Writer
from streamapp.broker.record import TP, Record
from streamapp.errors import NotFound, Unavailable

MAX_BYTES = 2 * 1024**3


class LogFull(Unavailable):
    """Nothing more is taken until the consumers have caught up."""

    code = "log_full"


class Log:
    """The log of one file, open in this process only. Thread-safe; futures are :class:`concurrent.futures.Future`."""

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        """Open or create the file.

        Raises:
            LogInUse: another process has it.
            ConfigError: it is not a log, or one of a later version.
        """
        self.path = path = path.resolve()
        self.max_bytes = max_bytes or MAX_BYTES
        self.full = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = lock.hold(path)
        try:
            self._connection = schema.connect(path)
            schema.prepare(self._connection, path)
            self._reader = schema.connect(path)
        except BaseException:
            lock.let_go(self._lock_file)
            raise
        self.topics: dict[str, TopicSpec] = {}
        self._partitions: dict[TP, Partition] = {}
        self._ends: dict[int, int] = {}
        self._commits: dict[str, dict[TP, int]] = {}
        self._watchers: list[Callable[[frozenset[TP]], None]] = []
        self._memory = threading.Lock()
        self._load()
        self._grown: set[TP] = set()
        self._topics_changed = False
        self._upkeep = Upkeep(self, self._connection)
        self._closed = False
        self._read_pool = ThreadPoolExecutor(1, thread_name_prefix="log-reader")
        self._writer = Writer(self._connection, self._upkeep, undo=self._undo, announce=self._announce)

    def close(self) -> None:
        """Write what was handed over, then let the file go. Blocks; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        self._read_pool.shutdown()
        self._reader.close()
        self._connection.close()
        lock.let_go(self._lock_file)

    # What readers see.

    def partition(self, tp: TP) -> Partition:
        """The state of a partition; raises ``NotFound`` for an unknown one."""
        try:
            return self._partitions[tp]
        except KeyError:
            raise NotFound(f"there is no partition {tp[1]} of topic {tp[0]}", topic=tp[0], partition=tp[1]) from None

    def bounds(self, tp: TP) -> tuple[int, int]:
        """Oldest offset still there, and the offset that the next record gets."""
        partition = self.partition(tp)
        return partition.first, partition.end

    def committed(self, group: str, tp: TP) -> int | None:
        """Next offset the group would read, ``None`` when it never committed."""
        return self._commits.get(group, {}).get(tp)

    def consumed(self, tp: TP) -> int | None:
        """The offset below which every group that ever committed on this partition is done; ``None`` without one."""
        return min((offsets[tp] for offsets in self._commits.values() if tp in offsets), default=None)

    def partitions(self) -> list[Partition]:
        """All partitions there are."""
        return list(self._partitions.values())

    def peek(self, tp: TP, start: int, limit: int) -> list[Record] | None:
        """Records from ``start`` on if memory has them all; ``None`` when the file must be read (:meth:`read`)."""
        partition = self.partition(tp)
        with self._memory:
            return partition.peek(start, limit)

    def read(self, tp: TP, start: int, limit: int) -> Future[list[Record]]:
        """At most ``limit`` records from ``start`` on (from the oldest, when that is gone), read in another thread."""
        partition = self.partition(tp)
        return self._read_pool.submit(self._read, partition, start, limit)

    def _read(self, partition: Partition, start: int, limit: int) -> list[Record]:
        rows = self._reader.execute(
            "SELECT offset, timestamp, key, value, headers FROM records WHERE partition=? AND offset>=? AND offset<? "
            "ORDER BY offset LIMIT ?",
            (partition.id, start, partition.end, limit),
        )
        topic, number = partition.tp
        return [Record(topic, number, row[0], row[1], row[2], row[3], schema.unpack_headers(row[4])) for row in rows]

    def offset_since(self, tp: TP, at: int) -> Future[int]:
        """The oldest offset of a record from ``at`` (ms) on, or the partition's end; walked in another thread."""
        return self._read_pool.submit(self._offset_since, self.partition(tp), at)

    def _offset_since(self, partition: Partition, at: int) -> int:
        query = "SELECT MIN(offset) FROM records WHERE partition=? AND offset<? AND timestamp>=?"
        row = self._reader.execute(query, (partition.id, partition.end, at)).fetchone()
        return partition.end if row[0] is None else int(row[0])

    def watch(self, callback: Callable[[frozenset[TP]], None]) -> Callable[[], None]:
        """Have the writer call back with the partitions that grew (none: topics changed); returns the undo."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    # Orders to the writer.

    def append(self, records: Sequence[NewRecord]) -> Future[list[int]]:
        """Append in order and return the offsets once durable; all of them or none.

        Raises:
            NotFound: at once, for an unknown partition.
            LogFull: at once, while consumers are too far behind (compacted topics are still written).
            ValueError: at once, for a record without a key on a compacted topic.
        """
        now = time.time_ns() // 1_000_000
        rows = [(self.check(record), record, record.timestamp or now) for record in records]

        def write(connection: sqlite3.Connection) -> list[tuple[Partition, Record]]:
            return [(row[0], self._insert(connection, *row)) for row in rows]

        offsets: Future[list[int]] = self._writer.order(write, self._published)
        return offsets

    def check(self, record: NewRecord) -> Partition:
        """Whether :meth:`append` would take this record: returns its partition or raises what it raises."""
        partition = self.partition(record.tp)
        if partition.compacted:
            if record.key is None:
                raise ValueError(f"topic {record.tp.topic} is compacted: a record needs a key")
        elif self.full:
            raise LogFull(
                f"the embedded broker holds {self.max_bytes} bytes that are not processed yet: "
                "let the workers catch up, or raise STREAMAPP_EMBEDDED_MAX_BYTES"
            )
        return partition

    def _insert(self, connection: sqlite3.Connection, partition: Partition, new: NewRecord, timestamp: int) -> Record:
        offset = self._ends[partition.id]
        self._ends[partition.id] = offset + 1
        row = (partition.id, offset, timestamp, new.key, new.value, schema.pack_headers(new.headers))
        connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", row)
        return Record(*new.tp, offset, timestamp, new.key, new.value, new.headers)

    def _published(self, written: list[tuple[Partition, Record]]) -> list[int]:
        with self._memory:
            for partition, record in written:
                partition.remember(record)
                partition.end = record.offset + 1
                partition.dirty += 1
        self._upkeep.grown(sum(record_size(record) for _, record in written))
        self._grown.update(partition.tp for partition, _ in written)
        return [record.offset for _, record in written]

    def commit(self, group: str, offsets: Mapping[TP, int]) -> Future[None]:
        """Store the next offset to read for each partition."""
        rows = [(group, self.partition(tp).id, offset) for tp, offset in offsets.items()]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO commits VALUES (?, ?, ?)", rows)

        def publish(_: None) -> None:
            self._commits[group] = {
                **self._commits.get(group, {}),
                **{TP(*tp): offset for tp, offset in offsets.items()},
            }

        return self._writer.order(write, publish)

    def create_topics(self, specs: Iterable[TopicSpec]) -> Future[list[str]]:
        """Create missing topics, store the configuration of all, return the created names (``PartitionMismatch``)."""
        specs = list(specs)

        def write(connection: sqlite3.Connection) -> list[TopicSpec]:
            missing = check_partitions(specs, {name: spec.partitions for name, spec in self.topics.items()})
            for spec in specs:
                connection.execute(
                    "INSERT OR REPLACE INTO topics VALUES (?, ?, ?)",
                    (spec.name, spec.partitions, schema.config_text(spec.config)),
                )
            connection.executemany(
                "INSERT INTO partitions (topic, number) VALUES (?, ?)",
                [(spec.name, number) for spec in missing for number in range(spec.partitions)],
            )
            return missing

        def publish(missing: list[TopicSpec]) -> list[str]:
            self._load()
            self._topics_changed = self._topics_changed or bool(missing)
            return [spec.name for spec in missing]

        created: Future[list[str]] = self._writer.order(write, publish)
        return created

    # What the writer calls in its thread.

    def _undo(self) -> None:
        self._ends = {partition.id: partition.end for partition in self._partitions.values()}

    def _announce(self) -> None:
        if self._grown or self._topics_changed:
            for watcher in list(self._watchers):
                # A watcher's event loop may have ended; that is no trouble of those who write.
                with contextlib.suppress(RuntimeError):
                    watcher(frozenset(self._grown))
        self._grown.clear()
        self._topics_changed = False

    def _load(self) -> None:
        """Read topics, bounds and commits of partitions not in memory yet."""
        connection = self._connection
        for name, partitions, config in connection.execute("SELECT name, partitions, config FROM topics").fetchall():
            self.topics[name] = TopicSpec(name, partitions, 1, orjson.loads(config))
        names: dict[int, TP] = {}
        for number_id, topic, number in connection.execute("SELECT id, topic, number FROM partitions").fetchall():
            tp = names[number_id] = TP(topic, number)
            known = self._partitions.get(tp)
            if known is not None:
                known.configure(self.topics[topic].config)
            else:
                query = "SELECT {}(offset) FROM records WHERE partition=?"
                first = connection.execute(query.format("MIN"), (number_id,)).fetchone()[0]
                last = connection.execute(query.format("MAX"), (number_id,)).fetchone()[0]
                first, end = (0, 0) if first is None else (first, last + 1)
                self._partitions[tp] = Partition(number_id, tp, first, end, self.topics[topic].config)
                self._ends[number_id] = end
        for group, number_id, offset in connection.execute("SELECT * FROM commits").fetchall():
            self._commits.setdefault(group, {})[names[number_id]] = offset
