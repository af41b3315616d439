"""Faust's producer over the embedded log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, cast

from aiokafka.partitioner import DefaultPartitioner
from faust.exceptions import NotReady, ProducerSendError
from faust.transport import base
from faust.types import TP, HeadersArg, RecordMetadata
from mode.utils.times import Seconds, want_seconds

from streamapp.broker import record
from streamapp.broker.admin import TopicSpec
from streamapp.broker.embedded.log import Log
from streamapp.broker.embedded.partition import NewRecord
from streamapp.errors import AppError

if TYPE_CHECKING:
    from streamapp.broker.embedded.transport import Transport

#: Senders wait above this many records that are handed over and not durable yet.
MAX_PENDING = 10_000


class Producer(base.Producer):
    """Appends to the log. What is sent in one turn of the event loop is written in one transaction."""

    def __post_init__(self) -> None:
        self._log: Log | None = None
        self._unsent: list[tuple[NewRecord, asyncio.Future[RecordMetadata]]] = []
        self._pending = 0
        self._room = asyncio.Event()
        self._newest: asyncio.Future[RecordMetadata] | None = None
        self._on_produce_message = self.app.on_produce_message.send
        self._partitioner: Any = self.partitioner or DefaultPartitioner()

    async def on_start(self) -> None:
        """Open the log."""
        self._log = await cast("Transport", self.transport).acquire()
        await super().on_start()

    async def on_shutdown(self) -> None:
        """Give the log back once everything is written."""
        await self._drain()
        if self._log is not None:
            self._log = None
            await cast("Transport", self.transport).release()

    def _ensure_log(self) -> Log:
        if self._log is None:
            raise NotReady("Producer service not yet started")
        return self._log

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: HeadersArg | None,
        *,
        transactional_id: str | None = None,  # noqa: ARG002 - Faust's signature
    ) -> Awaitable[RecordMetadata]:
        """Hand a record over; the returned future tells its offset once it is durable.

        ``timestamp`` is in seconds. Raises ``ProducerSendError`` for an unknown topic or partition, a record that
        is too large and a full log.
        """
        log = self._ensure_log()
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers or ())
        self._on_produce_message(key=key, value=value, partition=partition, timestamp=timestamp, headers=pairs)
        if len(key or b"") + len(value or b"") > self.max_request_size:
            raise ProducerSendError(f"a record for {topic} is larger than {self.max_request_size} bytes")
        number = self._partition(log, topic, key) if partition is None else partition
        stamp = int(timestamp * 1000) if timestamp else None
        new = NewRecord(record.TP(topic, number), key, value, stamp, tuple(pairs))
        try:
            log.check(new)
        except (AppError, ValueError) as error:
            raise ProducerSendError(str(error)) from error
        while self._pending >= MAX_PENDING:
            self._room.clear()
            await self._room.wait()
        future: asyncio.Future[RecordMetadata] = self.loop.create_future()
        self._pending += 1
        self._newest = future
        if not self._unsent:
            self.loop.call_soon(self._hand_over)
        self._unsent.append((new, future))
        return future

    async def send_and_wait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: HeadersArg | None,
        *,
        transactional_id: str | None = None,  # noqa: ARG002 - Faust's signature
    ) -> RecordMetadata:
        """Send and wait until the record is durable."""
        return await (await self.send(topic, key, value, partition, timestamp, headers))

    def _hand_over(self) -> None:
        batch, self._unsent = self._unsent, []
        try:
            written = self._ensure_log().append([new for new, _ in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the senders, not to the event loop
            self._fail(batch, error)
            return
        written.add_done_callback(lambda _: self.loop.call_soon_threadsafe(self._resolve, batch, written))

    def _settled(self, count: int) -> None:
        self._pending -= count
        self._room.set()

    def _fail(self, batch: list[tuple[NewRecord, asyncio.Future[RecordMetadata]]], error: BaseException) -> None:
        self._settled(len(batch))
        for _, future in batch:
            if not future.done():
                wrapped = ProducerSendError(f"Error while sending: {error}")
                wrapped.__cause__ = error
                future.set_exception(wrapped)

    def _resolve(self, batch: list[tuple[NewRecord, asyncio.Future[RecordMetadata]]], written: Any) -> None:
        error = written.exception()
        if error is not None:
            self._fail(batch, error)
            return
        self._settled(len(batch))
        for (new, future), offset in zip(batch, written.result(), strict=True):
            if not future.done():
                tp = TP(*new.tp)
                stamp = None if new.timestamp is None else new.timestamp / 1000
                future.set_result(RecordMetadata(tp.topic, tp.partition, tp, offset, stamp, 0))

    async def flush(self) -> None:
        """Wait until everything sent so far is durable."""
        await self.buffer.flush()
        await self._drain()

    async def _drain(self) -> None:
        # The log is written in order: when the newest is durable, all before it are.
        newest = self._newest
        if newest is not None and not newest.done():
            await asyncio.wait([newest])

    async def create_topic(  # noqa: PLR0913 - Faust's signature
        self,
        topic: str,
        partitions: int,
        replication: int,
        *,
        config: Mapping[str, Any] | None = None,
        timeout: Seconds = 20.0,  # noqa: ARG002
        retention: Seconds | None = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        ensure_created: bool = False,  # noqa: ARG002
    ) -> None:
        """Create a topic that does not exist yet; one that exists is left as it is."""
        log = self._ensure_log()
        if topic in log.topics:
            return
        settings = {name: str(value) for name, value in (config or {}).items()}
        policy = [name for name, wanted in (("compact", compacting), ("delete", deleting)) if wanted]
        if policy:
            settings.setdefault("cleanup.policy", ",".join(policy))
        if retention:
            settings.setdefault("retention.ms", str(int(want_seconds(retention) * 1000)))
        await asyncio.wrap_future(log.create_topics([TopicSpec(topic, partitions, replication, settings)]))

    def _partition(self, log: Log, topic: str, key: bytes | None) -> int:
        spec = log.topics.get(topic)
        if spec is None:
            raise ProducerSendError(f"there is no topic {topic}: create it first (streamapp topics create)")
        numbers = list(range(spec.partitions))
        return int(self._partitioner(key, numbers, numbers))

    def key_partition(self, topic: str, key: bytes) -> TP:
        """The partition that a key belongs to (murmur2, as on Kafka)."""
        return TP(topic, self._partition(self._ensure_log(), topic, key))

    def supports_headers(self) -> bool:
        """Headers are stored."""
        return True
