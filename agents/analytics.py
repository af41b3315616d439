"""Job throughput over windows: ``task_events`` into per-partition counters, their absolute values onto a topic.

Counting is repeated safely: each window row remembers the last offset it counted, and the counters of a
partition move with it, so an event delivered again after a rebalance or a crash is recognised. One that the
outbox produced twice (two offsets, one event id) is recognised while it is among the last ids seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from streamapp import topics
from streamapp.dead import dropped
from streamapp.errors import BadMessage, Unavailable
from streamapp.records import TaskEvent, ThroughputCount, check_time, decode
from streamapp.telemetry import get_logger
from tables.throughput_windows import Window

log = get_logger(__name__)

#: Length of each kind of window and how long its rows are kept, in ms.
WINDOWS = {"minute": (60_000, 2 * 3_600_000), "hour": (3_600_000, 48 * 3_600_000)}
IDS_KEPT = 20_000
FAILED = frozenset({"failed", "expired"})


class Analytics:
    """Counts events into the windows table and remembers which windows changed."""

    def __init__(self, table: MutableMapping[str, Window]) -> None:
        self.table = table
        self.changed: set[str] = set()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._swept: dict[int, int] = {}
        self._counts: dict[str, tuple[Window, ThroughputCount]] = {}

    def take(self, raw: bytes | None, partition: int, offset: int, *, now: int | None = None) -> None:
        """Count one event; raises ``BadMessage`` for one that cannot be read. Call inside stream iteration."""
        event = decode(TaskEvent, raw)
        if now is not None:
            check_time(event.at, now)
        if event.event_id in self._seen:
            return
        self._seen[event.event_id] = None
        if len(self._seen) > IDS_KEPT:
            self._seen.popitem(last=False)
        for name, (length, _) in WINDOWS.items():
            start = event.at - event.at % length
            empty = ThroughputCount.model_construct(
                window=name,
                start=start,
                family=event.family,
                shape=event.shape,
                with_lora=event.with_lora,
                partition=partition,
            )
            key = empty.key
            row = self.table.get(key)
            if row is not None and row.offset >= offset:
                continue
            count = add(empty if row is None else self._count(key, row), event)
            self.table[key] = row = Window(offset=offset, count=count.model_dump(mode="json"))
            self._counts[key] = row, count
            self.changed.add(key)
        self._sweep(event.at, partition)

    def _count(self, key: str, row: Window) -> ThroughputCount:
        """What a row counts: as this process wrote it, unless the row came from the changelog."""
        known, count = self._counts.get(key, (None, None))
        return count if known is row and count is not None else ThroughputCount.model_validate(row.count)

    def drain(self) -> list[ThroughputCount]:
        """The windows that changed since the last call, as absolute values."""
        changed, self.changed = self.changed, set()
        rows = [row for key in changed if (row := self.table.get(key)) is not None]
        return [ThroughputCount.model_validate(row.count) for row in rows]

    def recovered(self) -> None:
        """Tables came from the changelog: their last values may not have reached the totals."""
        self.changed.update(list(self.table.keys()))

    def _sweep(self, at: int, partition: int) -> None:
        """Once per minute of event time delete this partition's rows that are too old."""
        minute = at // 60_000
        if self._swept.get(partition, 0) >= minute:
            return
        self._swept[partition] = minute
        for key in list(self.table.keys()):
            name, start, *_, owner = key.split("|")
            if int(owner) == partition and at - int(start) > WINDOWS[name][0] + WINDOWS[name][1]:
                del self.table[key]
                self._counts.pop(key, None)


def add(count: ThroughputCount, event: TaskEvent) -> ThroughputCount:
    """The counters after ``event``."""
    ended = event.event == "succeeded"
    seconds = dict(count.seconds)
    for stage, value in event.seconds.items():
        seconds[stage] = round(seconds.get(stage, 0.0) + value, 4)
    return count.model_copy(
        update={
            "submitted": count.submitted + (event.event == "submitted"),
            "finished": count.finished + ended,
            "failed": count.failed + (event.event in FAILED),
            "images": count.images + (event.images if ended else 0),
            "steps": count.steps + (event.steps if ended else 0),
            "seconds": seconds,
        }
    )


def attach(app: Any) -> None:
    """Subscribe to ``task_events``; publish changed windows once a second."""
    topic = app.topic(
        topics.TASK_EVENTS, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )
    analytics = Analytics(app.read_models.throughput_windows)

    @app.agent(topic, name="analytics")  # type: ignore[untyped-decorator]
    async def count(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            message = event.message
            try:
                analytics.take(event.value, message.partition, message.offset, now=app.runtime.clock.now())
            except BadMessage as error:
                dropped(app.counters, topics.TASK_EVENTS, error)
            yield

    @app.timer(1.0, name="throughput_totals")  # type: ignore[untyped-decorator]
    async def publish() -> None:
        values = analytics.drain()
        for number, value in enumerate(values):
            try:
                await app.produce(topics.THROUGHPUT_TOTALS, None, value.key.encode(), value.encode())
            except Unavailable:
                # The broker is away. Values are absolute: the next round sends the newest. An error would end the app.
                analytics.changed.update(left.key for left in values[number:])
                return

    async def recovered(*_: Any, **__: Any) -> None:
        analytics.recovered()

    app.on_partitions_assigned.connect(recovered, weak=False)
