"""Faust's consumer over the embedded log: the only member of its group, so it gets every partition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from aiokafka.partitioner import DefaultPartitioner
from faust.exceptions import ConsumerNotStarted, ImproperlyConfigured
from faust.transport import base
from faust.transport.consumer import RecordMap
from faust.types import TP, ConsumerMessage
from mode.utils.times import Seconds

from streamapp.broker import record
from streamapp.broker.commit import CommitRule
from streamapp.broker.embedded.log import Log

if TYPE_CHECKING:
    from streamapp.broker.embedded.transport import Transport

MEMBER = "embedded"


class _Cluster:
    """The one question that Faust's assignor asks of Kafka's cluster metadata."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        spec = self._log.topics.get(topic)
        return None if spec is None else set(range(spec.partitions))


class LogConsumer(base.Consumer):
    """The driver's part: subscription, positions, reading. The commit rule comes from :class:`CommitRule`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._log: Log | None = None
        self._unwatch: Callable[[], None] | None = None
        self._topics: set[str] = set()
        self._assigned: set[TP] = set()
        self._positions: dict[TP, int] = {}
        self._rejoin = asyncio.Event()
        self._arrived = asyncio.Event()
        self._interrupted = False
        self._first = 0
        super().__init__(*args, **kwargs)
        if self.in_transaction:
            raise ImproperlyConfigured("embedded:// does not support exactly_once: delivery is at least once")
        self._partitioner: Any = cast(Any, self.app.conf).producer_partitioner or DefaultPartitioner()

    async def on_start(self) -> None:
        """Open the log and be told when it grows."""
        await super().on_start()
        self._log = await cast("Transport", self.transport).acquire()
        loop = asyncio.get_running_loop()

        def grown(tps: frozenset[record.TP]) -> None:
            loop.call_soon_threadsafe(self._on_grown, tps)

        self._unwatch = self._log.watch(grown)
        self.add_future(self._join_when_asked())

    async def on_shutdown(self) -> None:
        """Give the log back; the last commit was made in ``on_stop``."""
        if self._log is not None:
            if self._unwatch is not None:
                self._unwatch()
            self._log = None
            await cast("Transport", self.transport).release()

    def _ensure_log(self) -> Log:
        if self._log is None:
            raise ConsumerNotStarted("Consumer not yet started")
        return self._log

    def _on_grown(self, tps: frozenset[record.TP]) -> None:
        if not tps:
            if {tp.topic for tp in self._assigned} != self._topics:
                self._rejoin.set()
        elif not tps.isdisjoint(self._assigned):
            self._arrived.set()

    # Joining: what a group coordinator does for many members, done for one.

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Take these topics; the assignment follows from another task, as it does with Kafka."""
        topics = set(topics)
        if topics != self._topics or not self._assigned:
            self._topics = topics
            self._rejoin.set()

    async def _join_when_asked(self) -> None:
        while not self.should_stop:
            await self._rejoin.wait()
            self._rejoin.clear()
            if not self.should_stop:
                await self._join()

    async def _join(self) -> None:
        app = self.app
        app.on_rebalance_start()
        await self.on_partitions_revoked(set(self._assigned))
        assigned = self._assign()
        app.consumer_generation_id += 1
        self._assigned = assigned
        self._positions = {tp: self._reset_position(tp) for tp in assigned}
        await self.on_partitions_assigned(set(assigned), app.consumer_generation_id)

    def _assign(self) -> set[TP]:
        """Run Faust's own assignor with this process as the only member: table recovery reads its answer."""
        log = self._ensure_log()
        missing = sorted(topic for topic in self._topics if topic not in log.topics)
        if missing:
            self.log.warning("Topics that do not exist (streamapp topics create): %s", ", ".join(missing))
        assignor: Any = self.app.assignor
        cluster: Any = _Cluster(log)
        # Topics that do not exist would end the assignor with a KeyError when a table needs them.
        members = {MEMBER: assignor.metadata(self._topics - set(missing))}
        assignment = assignor.assign(cluster, members)[MEMBER]
        assignor.on_assignment(assignment)
        return {TP(topic, number) for topic, numbers in assignment.assignment for number in numbers}

    def _reset_position(self, tp: TP) -> int:
        first, end = self._ensure_log().bounds(record.TP(*tp))
        return first if self.app.conf.consumer_auto_offset_reset == "earliest" else end

    def assignment(self) -> set[TP]:
        """The partitions of this consumer."""
        self._ensure_log()
        return set(self._assigned)

    # Positions.

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Put every source partition at its committed offset, else at the start that the settings name."""
        log = self._ensure_log()
        committed: dict[TP, Any] = {}
        for tp in self._assigned:
            offset = committed[tp] = log.committed(self.app.conf.id, record.TP(*tp))
            if self.app.topics.acks_enabled_for(tp.topic):
                self._positions[tp] = self._reset_position(tp) if offset is None else offset
        return committed

    async def _seek(self, partition: TP, offset: int) -> None:
        self._positions[partition] = offset
        self._arrived.set()

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Put partitions at given offsets (recovery of tables does)."""
        for tp, offset in partitions.items():
            self._positions[tp] = offset
            self._read_offset[tp] = offset or None
        self._arrived.set()

    async def position(self, tp: TP) -> int | None:
        """The offset that is read next."""
        return self._positions.get(tp)

    def highwater(self, tp: TP) -> int:
        """The offset that the next record of the partition gets."""
        return self._ensure_log().bounds(record.TP(*tp))[1]

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """:meth:`highwater` of many."""
        return {tp: self.highwater(tp) for tp in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """The oldest offset still there, per partition."""
        log = self._ensure_log()
        return {tp: log.bounds(record.TP(*tp))[0] for tp in partitions}

    def topic_partitions(self, topic: str) -> int | None:
        """Number of partitions of a topic, ``None`` when it does not exist."""
        spec = self._log.topics.get(topic) if self._log is not None else None
        return None if spec is None else spec.partitions

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """The partition that a key belongs to (murmur2, as on Kafka)."""
        count = self.topic_partitions(topic)
        if count is None or partition is not None:
            return None if count is None else partition
        numbers = list(range(count))
        return int(self._partitioner(key, numbers, numbers))

    # Reading.

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> RecordMap:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self.should_stop:
            self._arrived.clear()
            self._interrupted = False
            records = await self._read(self._assigned if active_partitions is None else active_partitions)
            if records:
                return records
            try:
                await asyncio.wait_for(self._arrived.wait(), deadline - loop.time())
            except TimeoutError:
                break
            if self._interrupted:
                break
        return {}

    async def _read(self, wanted: Iterable[TP]) -> RecordMap:
        """Up to ``broker_max_poll_records``, shared by the partitions that have any; another one is first each time."""
        log = self._ensure_log()
        ready = sorted(tp for tp in wanted if tp in self._assigned and self._positions[tp] < self.highwater(tp))
        if not ready:
            return {}
        self._first = (self._first + 1) % len(ready)
        left = self.app.conf.broker_max_poll_records or 500
        share = max(1, left // len(ready))
        found: dict[TP, list[record.Record]] = {}
        for tp in ready[self._first :] + ready[: self._first]:
            start = self._positions[tp]
            records = log.peek(record.TP(*tp), start, share)
            if records is None:
                records = await asyncio.wrap_future(log.read(record.TP(*tp), start, share))
            # A seek while the file was read makes what was read worthless.
            if records and self._positions.get(tp) == start:
                self._positions[tp] = records[-1].offset + 1
                found[tp] = records
                left -= len(records)
            if left <= 0:
                break
        return found

    def _interrupt_fetch(self) -> None:
        self._interrupted = True
        self._arrived.set()

    def on_buffer_drop(self, tp: TP) -> None:
        """Fetch from a partition again whose buffer had been full."""
        super().on_buffer_drop(tp)
        self._arrived.set()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Fetch from paused partitions again."""
        super().resume_partitions(tps)
        self._arrived.set()

    def _to_message(self, tp: TP, found: record.Record) -> ConsumerMessage:
        return ConsumerMessage(
            found.topic,
            found.partition,
            found.offset,
            found.timestamp / 1000,
            0,
            cast(Any, list(found.headers)),
            found.key,
            found.value,
            None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    # Writing.

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        mine = {record.TP(*tp): offset for tp, offset in offsets.items() if tp in self._assigned}
        if not mine:
            return False
        await asyncio.wrap_future(self._ensure_log().commit(self.app.conf.id, mine))
        return True

    async def create_topic(  # noqa: PLR0913 - Faust's signature
        self,
        topic: str,
        partitions: int,
        replication: int,
        *,
        config: Mapping[str, Any] | None = None,
        timeout: Seconds = 30.0,
        retention: Seconds | None = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        ensure_created: bool = False,
    ) -> None:
        """Create a topic that does not exist yet."""
        await self.app.producer.create_topic(
            topic, partitions, replication, config=config, timeout=timeout, retention=retention,
            compacting=compacting, deleting=deleting, ensure_created=ensure_created,
        )  # fmt: skip

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)


class Consumer(CommitRule, LogConsumer):
    """The consumer of the embedded broker."""


__all__ = ["Consumer", "LogConsumer"]
