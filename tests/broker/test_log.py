"""The embedded log by itself."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamapp.broker.admin import TopicSpec
from streamapp.broker.embedded import upkeep, writer
from streamapp.broker.embedded.lock import LogInUse
from streamapp.broker.embedded.log import Log, LogFull
from streamapp.broker.embedded.partition import NewRecord
from streamapp.broker.record import TP, Record
from streamapp.errors import ConfigError, NotFound, PartitionMismatch

JOBS = TP("jobs", 0)
STATE = TP("state", 0)
COMPACT = {"cleanup.policy": "compact"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    one = Log(path)
    one.create_topics([TopicSpec("jobs", 2), TopicSpec("state", 1, 1, COMPACT)]).result()
    yield one
    one.close()


def put(log: Log, tp: TP, *values: bytes | None, key: bytes = b"k", timestamp: int | None = None) -> list[int]:
    return log.append([NewRecord(tp, key, value, timestamp) for value in values]).result()


def values(log: Log, tp: TP, start: int = 0, limit: int = 10_000) -> list[tuple[int, bytes | None]]:
    return [(record.offset, record.value) for record in log.read(tp, start, limit).result()]


def clean(log: Log, until: Callable[[], bool]) -> None:
    """Have the writer clean as its timer would, and wait for the outcome."""
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end, "cleaning did not come to the expected end"
        log._writer.order(lambda _: log._upkeep.begin(), lambda _: None).result()


def test_records_keep_everything_they_were_given(log: Log) -> None:
    headers = (("trace", b"\x00\xff"), ("empty", b""), ("none", None))
    offsets = log.append([NewRecord(JOBS, b"key", b"value", 1234, headers), NewRecord(JOBS, None, None)]).result()
    assert offsets == [0, 1]
    first, second = log.read(JOBS, 0, 10).result()
    assert first == Record("jobs", 0, 0, 1234, b"key", b"value", headers)
    assert (second.key, second.value, second.headers) == (None, None, ())
    assert log.peek(JOBS, 0, 10) == [first, second]


def test_partitions_count_for_themselves(log: Log) -> None:
    assert put(log, JOBS, b"a", b"b") == [0, 1]
    assert put(log, TP("jobs", 1), b"c") == [0]
    assert log.bounds(JOBS) == (0, 2)
    assert log.bounds(TP("jobs", 1)) == (0, 1)
    assert log.bounds(STATE) == (0, 0)


def test_everything_is_there_after_opening_again(log: Log, path: Path) -> None:
    put(log, JOBS, b"a", b"b", b"c")
    log.commit("group", {JOBS: 2}).result()
    log.close()
    again = Log(path)
    try:
        assert again.topics["state"] == TopicSpec("state", 1, 1, COMPACT)
        assert again.bounds(JOBS) == (0, 3)
        assert again.committed("group", JOBS) == 2
        assert again.committed("other", JOBS) is None
        assert values(again, JOBS, 1) == [(1, b"b"), (2, b"c")]
        assert put(again, JOBS, b"d") == [3]
    finally:
        again.close()


def test_watchers_hear_of_records_only_once_they_can_be_read(log: Log) -> None:
    seen: list[tuple[frozenset[TP], tuple[int, int]]] = []
    unwatch = log.watch(lambda tps: seen.append((tps, log.bounds(JOBS))))
    put(log, JOBS, b"a")
    unwatch()
    put(log, JOBS, b"b")
    assert seen == [(frozenset({JOBS}), (0, 1))]


def test_reading_by_memory_and_by_file_agree(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamapp.broker.embedded.partition.TAIL_BYTES", 2_000)
    put(log, JOBS, *(b"%d" % n for n in range(100)))
    assert log.peek(JOBS, 0, 10) is None, "the oldest are no longer in memory"
    assert log.peek(JOBS, 97, 10) == log.read(JOBS, 97, 10).result()
    assert log.peek(JOBS, 100, 10) == []


def test_an_unknown_partition_is_named(log: Log) -> None:
    with pytest.raises(NotFound, match="no partition 2 of topic jobs"):
        put(log, TP("jobs", 2), b"a")
    with pytest.raises(NotFound, match="topic nowhere"):
        log.bounds(TP("nowhere", 0))


def test_creating_topics_again_is_harmless_and_a_mismatch_says_what_to_do(log: Log) -> None:
    assert log.create_topics([TopicSpec("jobs", 2), TopicSpec("more", 1)]).result() == ["more"]
    with pytest.raises(
        PartitionMismatch, match=r"jobs has 2 partitions, the settings ask for 3: set STREAMAPP_PARTITIONS=2"
    ):
        log.create_topics([TopicSpec("jobs", 3)]).result()
    assert put(log, TP("more", 0), b"the writer lives on") == [0]


def test_a_wrong_order_does_not_take_its_neighbours_along(log: Log) -> None:
    orders = [log.append([NewRecord(JOBS, b"k", b"a")])]
    orders.append(log._writer.order(lambda connection: connection.execute("SELECT nonsense"), lambda _: None))
    orders.append(log.append([NewRecord(JOBS, b"k", b"b")]))
    assert orders[0].result() == [0]
    assert isinstance(orders[1].exception(), sqlite3.OperationalError)
    assert orders[2].result() == [1]


async def test_who_stops_waiting_does_not_stop_the_writer(log: Log) -> None:
    waiting = asyncio.wrap_future(log.append([NewRecord(JOBS, b"k", b"a")]))
    waiting.cancel()
    await asyncio.sleep(0)
    assert await asyncio.wrap_future(log.append([NewRecord(JOBS, b"k", b"b")])) == [1]


def test_a_second_owner_is_refused_with_a_sentence(log: Log, path: Path) -> None:
    with pytest.raises(LogInUse, match=f"in use by process {os.getpid()}: .*one process only"):
        Log(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    text, other = tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("not a database at all, but long enough to be read as one" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Log(text)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    connection.close()
    with pytest.raises(ConfigError, match="another program"):
        Log(other)


def test_compaction_keeps_offsets_the_newest_of_each_key_and_the_newest_of_all(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MIN_DIRTY", 1)
    monkeypatch.setattr(upkeep, "CHUNK", 7)
    for n in range(20):
        put(log, STATE, b"a%d" % n, key=b"a")
        put(log, STATE, b"b%d" % n, key=b"b")
    put(log, STATE, b"c", key=b"c")
    put(log, STATE, None, key=b"b", timestamp=1)  # an old tombstone, but the newest record
    clean(log, lambda: len(values(log, STATE)) == 3)
    assert values(log, STATE) == [(38, b"a19"), (40, b"c"), (41, None)]
    assert log.bounds(STATE) == (38, 42)
    put(log, STATE, b"d", key=b"d")
    clean(log, lambda: len(values(log, STATE)) == 3)
    assert values(log, STATE) == [(38, b"a19"), (40, b"c"), (42, b"d")]


def test_a_compacted_topic_takes_no_record_without_a_key(log: Log) -> None:
    with pytest.raises(ValueError, match="needs a key"):
        log.append([NewRecord(STATE, None, b"x")])


def test_old_records_go_and_the_newest_stays(log: Log) -> None:
    log.create_topics([TopicSpec("short", 1, 1, {"retention.ms": "60000"})]).result()
    tp = TP("short", 0)
    put(log, tp, *(b"old",) * 5, timestamp=1)
    clean(log, lambda: log.bounds(tp)[0] == 4)
    assert values(log, tp) == [(4, b"old")]
    put(log, tp, b"young", b"younger")
    clean(log, lambda: log.bounds(tp)[0] == 5)
    assert values(log, tp) == [(5, b"young"), (6, b"younger")]


def test_a_topic_with_a_size_keeps_to_it(log: Log) -> None:
    log.create_topics([TopicSpec("small", 1, 1, {"retention.bytes": "10000"})]).result()
    tp = TP("small", 0)
    put(log, tp, *(b"x" * 900,) * 50)
    clean(log, lambda: log.bounds(tp)[0] > 0)
    assert log.bounds(tp) == (41, 50)


def test_a_full_log_drops_what_was_read_and_refuses_the_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "UPKEEP_INTERVAL", 0.01)
    log = Log(path, max_bytes=2 * 1024**2)
    try:
        log.create_topics([TopicSpec("jobs", 1), TopicSpec("state", 1, 1, COMPACT)]).result()
        put(log, JOBS, *(b"x" * 10_000,) * 150)
        log.commit("group", {JOBS: 100}).result()
        put(log, JOBS, *(b"y" * 10_000,) * 100)
        clean(log, lambda: log.bounds(JOBS)[0] > 0)
        assert log.bounds(JOBS)[0] <= 100, "nothing unread was dropped"
        put(log, JOBS, *(b"z" * 10_000,) * 150)
        clean(log, lambda: log.full)
        assert log.bounds(JOBS)[0] == 100
        with pytest.raises(LogFull, match="let the workers catch up"):
            put(log, JOBS, b"one more")
        assert put(log, STATE, b"tables are still written") == [0]
        log.commit("group", {JOBS: 400}).result()
        clean(log, lambda: not log.full)
        put(log, JOBS, b"welcome again")
    finally:
        log.close()


def test_a_forked_child_does_not_hold_the_lock(path: Path) -> None:
    log = Log(path)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read, 1)
        os._exit(0)
    try:
        log.close()
        Log(path).close()
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
