"""Job throughput over windows: ``task_events`` into per-partition counters, their absolute values onto a topic.

Counting is repeated safely: each window row remembers the last offset it counted, and the counters of a
partition move with it, so an event delivered again after a rebalance or a crash is recognised. One that the
outbox produced twice (two offsets, one event id) is recognised while it is among the last ids seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
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
#: Events that are written together at most.
TOGETHER = 500
FAILED = frozenset({"failed", "expired"})


class Analytics:
    """Counts events into the windows table and remembers which windows changed."""

    def __init__(self, table: MutableMapping[str, Window]) -> None:
        self.table = table
        self.changed: set[str] = set()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._swept: dict[int, int] = {}
        self._counts: dict[str, tuple[Window, ThroughputCount]] = {}
        #: Counted and not written: by partition and key the counters and the last offset that is in them.
        self._open: dict[int, dict[str, tuple[ThroughputCount, int]]] = {}
        self._unwritten: list[str] = []

    def take(self, raw: bytes | None, partition: int, offset: int, *, now: int | None = None) -> None:
        """Count and write one event, inside stream iteration; raises ``BadMessage`` for one that cannot be read."""
        self.count(raw, partition, offset, now=now)
        self.write()

    def count(self, raw: bytes | None, partition: int, offset: int, *, now: int | None = None) -> None:
        """Count one event; :meth:`write` has to follow before it is acked. Raises ``BadMessage``."""
        event = decode(TaskEvent, raw)
        if now is not None:
            check_time(event.at, now)
        if event.event_id in self._seen:
            return
        self._seen[event.event_id] = None
        self._unwritten.append(event.event_id)
        if len(self._seen) > IDS_KEPT:
            self._seen.popitem(last=False)
        counted = self._open.setdefault(partition, {})
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
            known = counted.get(key)
            if known is None:
                row = self.table.get(key)
                known = (empty, -1) if row is None else (self._count(key, row), row.offset)
            if known[1] < offset:
                counted[key] = add(known[0], event), offset

    def write(self, acting: Callable[[int], object] = lambda _: None) -> None:
        """Write what was counted, each row once; ``acting`` makes an event of a partition the current one before."""
        counted, self._open = self._open, {}
        self._unwritten.clear()
        for partition, rows in counted.items():
            acting(partition)
            for key, (count, offset) in rows.items():
                self.table[key] = row = Window(offset=offset, count=count.model_dump(mode="json"))
                self._counts[key] = row, count
                self.changed.add(key)
            if rows:
                self._sweep(max(count.start for count, _ in rows.values()), partition)

    def drop(self) -> None:
        """Partitions move: what was not written was not acked either, and is counted by whoever has them next."""
        for event_id in self._unwritten:
            self._seen.pop(event_id, None)
        self._unwritten.clear()
        self._open.clear()

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


def write(stream: Any, analytics: Analytics, held: Sequence[Any]) -> None:
    """Write what ``held`` events count, each partition's rows under its newest event, and ack them.

    A table takes the partition of its changelog from the event that is being processed.
    """
    newest = {event.message.partition: event for event in held}
    analytics.write(lambda partition: stream._set_current_event(newest[partition]))
    stream._set_current_event(held[-1])
    for event in held:
        event.ack()


def attach(app: Any) -> None:
    """Subscribe to ``task_events``; publish changed windows once a second."""
    topic = app.topic(
        topics.TASK_EVENTS, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )
    analytics = Analytics(app.read_models.throughput_windows)

    @app.agent(topic, name="analytics")  # type: ignore[untyped-decorator]
    async def count(stream: Any) -> AsyncIterator[None]:
        held: list[Any] = []
        analytics.drop()
        stream = stream.noack()
        async for event in stream.events():
            message = event.message
            try:
                analytics.count(event.value, message.partition, message.offset, now=app.runtime.clock.now())
            except BadMessage as error:
                dropped(app.counters, topics.TASK_EVENTS, error)
            held.append(event)
            # What waits in the queue is written together. Where Faust hands events over one by one, as it does with the
            # embedded broker, that is each for itself.
            if len(held) >= TOGETHER or stream.channel.queue.empty():
                write(stream, analytics, held)
                held = []
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

    async def revoked(*_: Any, **__: Any) -> None:
        analytics.drop()

    async def recovered(*_: Any, **__: Any) -> None:
        analytics.drop()
        analytics.recovered()

    app.on_partitions_revoked.connect(revoked, weak=False)

    app.on_partitions_assigned.connect(recovered, weak=False)
