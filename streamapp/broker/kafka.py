"""Faust's aiokafka driver with what it lacks: the repaired commit rule, exact seeks, and an end that ends.

Registered as ``kafka`` in ``faust.transports``, it replaces the shipped driver. Settings that belong with it:
``producer_acks=-1``, ``producer_linger=0``, ``producer_compression_type``, ``producer_request_timeout`` (the shipped
1,200 s block a send that long), ``broker_max_poll_records=100``.

With the broker down, Faust's producer flush, its last commit and the consumer's farewell wait for minutes. Once the
application stops, each of them gets ``app.broker_stop_timeout`` seconds (:data:`STOP_TIMEOUT`), and after the first
that did not answer the others get :data:`GIVEN_UP`. What is lost by that is a late commit or a message that the
outbox still has: both come again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar, TypeVar, cast

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.exceptions import ConsumerNotStarted
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AppT
from faust.types.transports import ConsumerT, ProducerT

from streamapp.broker.buffer import be_patient
from streamapp.broker.commit import CommitRule
from streamapp.broker.known_topics import wait_for_topics
from streamapp.broker.quiet import limit_client_logs

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds that a flush, a commit or a farewell may take once the application stops.
STOP_TIMEOUT = 5.0
GIVEN_UP = 0.5
#: Seconds between attempts to reach a broker that was down at start.
RECONNECT = 1.0


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread that owns the aiokafka consumer."""

    async def on_start(self) -> None:
        """Connect; a broker that is down is waited for, until the application stops."""
        while not _stopping(self.app):
            self._consumer = self._create_consumer(loop=self.thread_loop)
            self.time_started = asyncio.get_running_loop().time()
            try:
                await self._consumer.start()
                if self._consumer._coordinator is not None:
                    wait_for_topics(self._consumer._coordinator)
                return
            except KafkaConnectionError as error:
                logger.warning("Waiting for the broker: %s", error)
                await self._consumer.stop()
                self._consumer = None
                await asyncio.sleep(RECONNECT)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit; what fails is tried again at the next turn of the timer.

        The shipped one takes the whole application down with any error but one, also where the partition was
        revoked at that moment, or the group forgot this member while the broker was away.
        """
        consumer = self._ensure_consumer()
        assigned = self.assignment()
        mine = {TopicPartition(*tp): OffsetAndMetadata(at, "") for tp, at in offsets.items() if tp in assigned}
        if not mine:
            return False
        try:
            await consumer.commit(mine)
        except KafkaError as error:
            logger.warning("Offsets could not be committed, they will be later: %r", error)
            return False
        now = time.monotonic()
        self.tp_last_committed_at.update({TP(*tp): now for tp in mine})
        return True

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every source partition to its committed offset, else to where a new group starts.

        aiokafka leaves the position alone where nothing was committed yet: what had been fetched and thrown away by
        a rebalance would not come again.
        """
        committed: Mapping[TP, int] = await self.call_thread(self._seek_to_committed, self._ensure_consumer())
        return committed

    async def _seek_to_committed(self, consumer: AIOKafkaConsumer) -> Mapping[TP, int]:
        committed = await consumer.seek_to_committed()
        for partition, offset in committed.items():
            if not self.app.topics.acks_enabled_for(partition.topic):
                continue
            if offset == 0:
                consumer.seek(partition, 0)
            elif offset is None and self.app.conf.consumer_auto_offset_reset == "earliest":
                await consumer.seek_to_beginning(partition)
        return {ensure_TP(partition): offset for partition, offset in committed.items()}

    async def on_thread_stop(self) -> None:
        """Leave the group and disconnect, within bounds."""
        transport = cast("Transport", self.transport)
        farewell = asyncio.ensure_future(super().on_thread_stop())
        await asyncio.wait({farewell}, timeout=transport.stop_timeout)
        if not farewell.done():
            transport.give_up("the consumer's farewell")
            farewell.cancel()
            await asyncio.wait({farewell}, timeout=GIVEN_UP)
        # With the broker down aiokafka lets the cancellation of its own fetches escape, and leaves the client open.
        failed = not farewell.done() or farewell.cancelled() or farewell.exception() is not None
        if failed and self._consumer is not None:
            self._consumer._closed = True
            await _within(self._consumer._client.close())


class Consumer(CommitRule, driver.Consumer):
    """The Kafka consumer with the repaired commit rule."""

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def assignment(self) -> set[TP]:
        """The partitions of this consumer: none while the broker was never reached."""
        try:
            return super().assignment()
        except ConsumerNotStarted:
            return set()

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        transport = cast("Transport", self.transport)
        return await transport.unless_stopping(super()._commit(offsets), "the commit of offsets", False)


class Producer(driver.Producer):
    """The Kafka producer: acknowledged by all replicas, flushed within bounds, there before the broker is."""

    _connecting: asyncio.Task[None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        be_patient(self)

    def _settings_extra(self) -> Mapping[str, Any]:
        return {**super()._settings_extra(), "acks": "all"}

    async def on_start(self) -> None:
        """Connect; a broker that is down is waited for in the background, so that everything else can start."""
        await super(driver.Producer, self).on_start()
        if not await self._connect():
            self._connecting = asyncio.ensure_future(self._keep_connecting())

    async def _connect(self) -> bool:
        producer = self._new_producer()
        try:
            await producer.start()
        except KafkaConnectionError as error:
            logger.warning("Waiting for the broker: %s", error)
            await producer.stop()
            return False
        self._producer = producer
        return True

    async def _keep_connecting(self) -> None:
        while not self.should_stop:
            await asyncio.sleep(RECONNECT)
            if await self._connect():
                return

    async def flush(self) -> None:
        """Wait until everything sent is acknowledged; not for ever once the application stops."""
        transport = cast("Transport", self.transport)
        await transport.unless_stopping(super().flush(), "the producer's flush", None)

    async def on_stop(self) -> None:
        """Flush and disconnect, within bounds."""
        if self._connecting is not None:
            self._connecting.cancel()
        transport, producer = cast("Transport", self.transport), self._producer
        try:
            await asyncio.wait_for(super().on_stop(), transport.stop_timeout)
        except TimeoutError:
            transport.give_up("the producer's last flush")
            if producer is not None:
                await _abandon(producer)


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Close a producer that cannot flush."""
    task = producer._sender.sender_task
    if task is not None:
        task.cancel()
        await asyncio.wait({task}, timeout=GIVEN_UP)
    await _within(producer.client.close())


async def _within(work: Awaitable[Any]) -> None:
    """Wait for a last piece of work, not for long and not for its outcome."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=GIVEN_UP)
    task.cancel()


def _stopping(app: AppT) -> bool:
    return bool(app.should_stop)


class Transport(driver.Transport):
    """Kafka, as this service needs it."""

    Consumer: ClassVar[type[ConsumerT]] = Consumer
    Producer: ClassVar[type[ProducerT]] = Producer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given_up = False
        limit_client_logs()

    @property
    def stop_timeout(self) -> float:
        """How long the next farewell may take, in seconds."""
        return GIVEN_UP if self._given_up else float(getattr(self.app, "broker_stop_timeout", STOP_TIMEOUT))

    def give_up(self, what: str) -> None:
        """Note that the broker did not answer while the application stops."""
        self._given_up = True
        logger.warning("%s did not end in time, the broker does not answer: stopping without it", what)

    async def unless_stopping(self, work: Awaitable[T], what: str, otherwise: T) -> T:
        """Wait for ``work`` as long as the application runs; once it stops, at most :attr:`stop_timeout` more."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(cast(Any, self.app)._stopped.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=self.stop_timeout)
            if task.done():
                return task.result()
            self.give_up(what)
            return otherwise
        finally:
            stopping.cancel()
            task.cancel()
