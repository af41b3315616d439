"""The admin port over Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError, TopicAlreadyExistsError, for_code

from streamapp.broker.admin import TopicSpec, check_partitions
from streamapp.broker.quiet import limit_client_logs
from streamapp.broker.record import TP, Record
from streamapp.broker.security import client_security
from streamapp.errors import ConfigError, NotFound, Unavailable

T = TypeVar("T")

OFFSETS = "__consumer_offsets"
#: Seconds after which a broker that does not answer counts as unavailable.
TIMEOUT = 10.0


class KafkaAdmin:
    """See :class:`streamapp.broker.admin.Admin`. Connects when first asked, so it can be made while Kafka is down."""

    def __init__(self, settings: Any, *, timeout: float = TIMEOUT) -> None:
        self._servers = [server for server in str(settings.broker).removeprefix("kafka://").split(",") if server]
        self._security = client_security(settings)
        self._timeout = timeout
        self._client: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._connecting = asyncio.Lock()
        limit_client_logs()

    async def start(self) -> None:
        """Nothing to do before the first question."""

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()
        if client is not None:
            await client.close()

    async def _ask(self, question: Awaitable[T]) -> T:
        """The answer, or ``Unavailable`` within the time-out."""
        try:
            return await asyncio.wait_for(question, self._timeout)
        except TimeoutError as error:
            raise Unavailable(f"Kafka at {','.join(self._servers)} did not answer in {self._timeout:g} s") from error
        except KafkaError as error:
            raise Unavailable(f"Kafka at {','.join(self._servers)} does not answer: {error!r}") from error

    async def _connected(self) -> AIOKafkaAdminClient:
        async with self._connecting:
            if self._client is None:
                options = {"bootstrap_servers": self._servers, "request_timeout_ms": int(self._timeout * 1000)}
                client = AIOKafkaAdminClient(**options, **self._security)
                try:
                    await client.start()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client

    def _new_reader(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            request_timeout_ms=int(self._timeout * 1000),
            **self._security,
        )

    async def _reader(self) -> AIOKafkaConsumer:
        async with self._connecting:
            if self._consumer is None:
                consumer = self._new_reader()
                try:
                    await consumer.start()
                except BaseException:
                    await consumer.stop()
                    raise
                self._consumer = consumer
            return self._consumer

    async def ping(self) -> None:
        """Ask for the cluster's metadata."""
        await self._ask(self._ping())

    async def _ping(self) -> None:
        await (await self._connected()).describe_cluster()

    async def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Partition counts of the topics that exist."""
        names = sorted(set(topics))
        return await self._ask(self._partitions(names)) if names else {}

    async def _partitions(self, names: list[str]) -> dict[str, int]:
        # The whole list: asking for a name would create it on a broker that creates topics by itself.
        found = await (await self._connected()).describe_topics()
        return {topic["topic"]: len(topic["partitions"]) for topic in found if topic["topic"] in set(names)}

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create what is missing and wait until it is known; ``PartitionMismatch`` when a topic differs."""
        existing = await self.partitions(spec.name for spec in specs)
        missing = check_partitions(specs, existing)
        if missing:
            await self._ask(self._create(missing))
            # Answered by the controller before the broker's metadata has the topics.
            async with asyncio.timeout(self._timeout):
                while check_partitions(specs, await self.partitions(spec.name for spec in specs)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        return [spec.name for spec in missing]

    async def _create(self, specs: Sequence[TopicSpec]) -> None:
        client = await self._connected()
        wanted = [
            NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(spec.config)) for spec in specs
        ]
        response = await client.create_topics(wanted, timeout_ms=int(self._timeout * 1000))
        for name, code, message in response.topic_errors:
            # Another process may have been quicker.
            if code not in (0, TopicAlreadyExistsError.errno):
                raise ConfigError(f"topic {name} cannot be created: {message or for_code(code).__name__}", topic=name)

    async def committed(self, group: str, topics: Iterable[str]) -> dict[TP, int]:
        """Committed offsets of a group."""
        return await self._ask(self._committed(group, set(topics)))

    async def _committed(self, group: str, topics: set[str]) -> dict[TP, int]:
        client = await self._connected()
        try:
            found = await client.list_consumer_group_offsets(group)
        except GroupCoordinatorNotAvailableError:
            # Kafka makes its offsets topic when the first group joins; before that nobody committed anything.
            if await self._partitions([OFFSETS]):
                raise
            return {}
        return {TP(*tp): at.offset for tp, at in found.items() if tp.topic in topics and at.offset >= 0}

    async def bounds(self, topics: Iterable[str]) -> dict[TP, tuple[int, int]]:
        """First and end offsets."""
        return await self._ask(self._bounds(list(topics)))

    async def _bounds(self, topics: list[str]) -> dict[TP, tuple[int, int]]:
        counts = await self._partitions(topics)
        tps = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
        if not tps:
            return {}
        reader = await self._reader()
        firsts, ends = await reader.beginning_offsets(tps), await reader.end_offsets(tps)
        return {TP(*tp): (firsts[tp], ends[tp]) for tp in tps}

    async def offsets_since(self, topics: Iterable[str], at: int) -> dict[TP, int]:
        """Where a time begins."""
        return await self._ask(self._offsets_since(list(topics), at))

    async def _offsets_since(self, topics: list[str], at: int) -> dict[TP, int]:
        bounds = await self._bounds(topics)
        if not bounds:
            return {}
        reader = await self._reader()
        found = await reader.offsets_for_times({TopicPartition(*tp): at for tp in bounds})
        starts = {TP(*tp): place.offset for tp, place in found.items() if place is not None}
        return {tp: starts.get(tp, end) for tp, (_, end) in bounds.items()}

    async def read(self, topic: str, partition: int, start: int, limit: int) -> list[Record]:
        """Old records; ends early where the partition does."""
        return await self._ask(self._read(TopicPartition(topic, partition), start, limit))

    async def _read(self, tp: TopicPartition, start: int, limit: int) -> list[Record]:
        counts = await self._partitions([tp.topic])
        if tp.partition >= counts.get(tp.topic, 0):
            raise NotFound(f"there is no partition {tp.partition} of topic {tp.topic}", topic=tp.topic)
        found: list[Record] = []
        # A consumer of its own: aiokafka's fetcher does not survive a taken back assignment.
        async with self._new_reader() as reader:
            reader.assign([tp])
            end = (await reader.end_offsets([tp]))[tp]
            position = max(start, (await reader.beginning_offsets([tp]))[tp])
            reader.seek(tp, position)
            while position < end and len(found) < limit:
                batch = await reader.getmany(tp, timeout_ms=1000, max_records=limit - len(found))
                found += [_record(record) for record in batch.get(tp, [])]
                # Behind the last record of a compacted partition nothing comes: the position tells.
                position = await reader.position(tp)
        return found


def _record(found: Any) -> Record:
    return Record(
        found.topic, found.partition, found.offset, found.timestamp, found.key, found.value, tuple(found.headers)
    )
