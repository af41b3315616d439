"""What the control agents make of events: the plain functions inside the loops, with dicts for tables."""

from __future__ import annotations

from typing import Any

import pytest

from agents import analytics, dead_letters, status, totals
from streamapp.errors import BadMessage
from streamapp.records import DeadLetter, ModelLoad, TaskEvent, ThroughputCount, WorkerStatus

MINUTE = 60_000


def said(worker_id: str, at: int, **given: Any) -> bytes:
    base: dict[str, Any] = {
        "worker_id": worker_id, "host": "h", "pid": 1, "port": 1, "role": "worker", "families": ("sd15",),
        "device": "cpu", "engine": "ready", "state": "running", "started_at": 0, "at": at,
        "backlog": {"pocket": ModelLoad(jobs=2, seconds=3.0)},
        "checkpoints": {"pocket": "vram"}, "loras": {"ink": "ram"},
    }  # fmt: skip
    return WorkerStatus.model_validate(base | given).encode()


def happened(event: str, at: int = 5 * MINUTE, **given: Any) -> bytes:
    base: dict[str, Any] = {
        "event_id": f"{event}-{at}-{given.get('task_id', 't')}", "task_id": "t", "event": event, "at": at,
        "user_id": "u", "family": "sd15", "model": "pocket", "shape": "128x128", "images": 2, "steps": 40,
        "seconds": {"denoise": 0.5},
    }  # fmt: skip
    return TaskEvent.model_validate(base | given).encode()


class Statuses:
    """Both tables that the status agent writes."""

    def __init__(self) -> None:
        self.backlog: dict[str, Any] = {}
        self.loras: dict[str, Any] = {}

    def take(self, raw: bytes | None) -> None:
        status.take(raw, self.backlog, self.loras, silence_ms=30_000)


def test_a_status_fills_both_tables_and_the_newest_wins() -> None:
    tables = Statuses()
    tables.take(said("w1", 2_000))
    tables.take(said("w1", 1_000, engine="failed"))
    assert tables.backlog["w1"].status["engine"] == "ready"
    assert tables.backlog["w1"].status["backlog"] == {"pocket": {"jobs": 2, "seconds": 3.0}}
    assert (tables.loras["w1"].checkpoints, tables.loras["w1"].loras) == ({"pocket": "vram"}, {"ink": "ram"})


def test_a_worker_that_says_it_is_gone_leaves_both_tables() -> None:
    tables = Statuses()
    tables.take(said("w1", 1_000))
    tables.take(said("w1", 2_000, state="gone"))
    assert tables.backlog == tables.loras == {}


def test_a_silent_worker_is_forgotten_when_another_speaks() -> None:
    tables = Statuses()
    tables.take(said("silent", 1_000))
    tables.take(said("w1", 31_000))
    assert set(tables.backlog) == {"silent", "w1"}
    tables.take(said("w1", 31_001))
    assert set(tables.backlog) == set(tables.loras) == {"w1"}


@pytest.mark.parametrize(
    "raw", [None, b"", b"{", b"[]", b'{"kind": "task", "v": 1}', b'{"kind": "worker_status", "v": 9}']
)
def test_bad_statuses_are_refused_and_change_nothing(raw: bytes | None) -> None:
    tables = Statuses()
    with pytest.raises(BadMessage):
        tables.take(raw)
    assert tables.backlog == {}


def test_events_are_counted_per_minute_and_hour_by_shape_and_lora() -> None:
    counting = analytics.Analytics({})
    for offset, (event, at) in enumerate(
        [
            ("submitted", 5 * MINUTE),
            ("succeeded", 5 * MINUTE + 30_000),
            ("succeeded", 6 * MINUTE),
            ("failed", 6 * MINUTE),
        ]
    ):
        counting.take(happened(event, at), 3, offset)
    counts = {count.key: count for count in counting.drain()}
    fifth = counts["minute|300000|sd15|128x128|plain|3"]
    assert (fifth.submitted, fifth.finished, fifth.images, fifth.steps) == (1, 1, 2, 40)
    hour = counts["hour|0|sd15|128x128|plain|3"]
    assert (hour.submitted, hour.finished, hour.failed, hour.images) == (1, 2, 1, 4)
    assert hour.seconds == {"denoise": 2.0}
    assert counting.drain() == []


def test_an_event_delivered_again_or_sent_twice_is_counted_once() -> None:
    table: dict[str, Any] = {}
    first = analytics.Analytics(table)
    first.take(happened("succeeded", task_id="a"), 0, 10)
    first.take(happened("succeeded", task_id="a"), 0, 11)  # the outbox sent it twice
    restarted = analytics.Analytics(table)
    restarted.take(happened("succeeded", task_id="a"), 0, 10)  # delivered again after a restart
    restarted.take(happened("succeeded", task_id="b"), 0, 12)
    [minute] = [count for count in restarted.drain() if count.window == "minute"]
    assert minute.finished == 2


def test_windows_that_are_too_old_are_deleted_from_their_own_partition_only() -> None:
    table: dict[str, Any] = {}
    counting = analytics.Analytics(table)
    counting.take(happened("succeeded", at=MINUTE, task_id="a"), 0, 1)
    counting.take(happened("succeeded", at=MINUTE, task_id="b"), 1, 1)
    later = MINUTE + analytics.WINDOWS["minute"][1] + 2 * MINUTE
    counting.take(happened("succeeded", at=later, task_id="c"), 0, 2)
    minutes = sorted(key for key in table if key.startswith("minute"))
    assert [key.rsplit("|", 1)[1] for key in minutes if int(key.split("|")[1]) == MINUTE] == ["1"]
    assert len([key for key in table if key.startswith("hour")]) == 3


def test_after_recovery_every_window_is_published_again() -> None:
    table: dict[str, Any] = {}
    analytics.Analytics(table).take(happened("succeeded"), 0, 1)
    fresh = analytics.Analytics(table)
    assert fresh.drain() == []
    fresh.recovered()
    assert len(fresh.drain()) == 2


def test_totals_keep_absolute_values_and_forget_old_windows() -> None:
    table: dict[str, Any] = {}
    swept = totals.Swept()

    def count(start: int, finished: int) -> bytes:
        return ThroughputCount(
            window="minute",
            start=start,
            family="sd15",
            shape="128x128",
            with_lora=False,
            partition=0,
            finished=finished,
        ).encode()

    totals.take(count(0, 1), table, swept)
    totals.take(count(0, 5), table, swept)
    assert [row.count["finished"] for row in table.values()] == [5]
    totals.take(count(3 * 3_600_000, 1), table, swept)
    assert [row.start for row in table.values()] == [3 * 3_600_000]


def test_dead_letters_are_counted_also_unreadable_ones() -> None:
    counters: dict[str, int] = {}
    letter = DeadLetter(task_id="t", topic="sd15_tasks", partition=0, offset=4, reason="r", message="m", at=1)
    dead_letters.take(letter.encode(), counters)
    dead_letters.take(b"\xff", counters)
    dead_letters.take(None, counters)
    assert counters == {"dead_letters": 1, "dead_letters_unreadable": 2}
