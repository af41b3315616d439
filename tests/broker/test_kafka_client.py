"""What the Kafka client does here that the shipped one does not, without a broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.exceptions import ProducerSendError
from faust.types import TP

from streamapp.broker.buffer import PatientBuffer
from streamapp.broker.kafka import ConsumerThread
from streamapp.broker.known_topics import wait_for_topics


class Client:
    """Lists one more topic at each look."""

    def __init__(self, *listed: str) -> None:
        self.coming = list(listed)
        self.known: set[str] = set()
        self.wanted: set[str] = set()
        self.cluster = SimpleNamespace(partitions_for_topic=lambda topic: {0} if topic in self.known else None)

    def set_topics(self, topics: set[str]) -> None:
        self.wanted = set(topics)

    async def force_metadata_update(self) -> None:
        if self.coming:
            self.known.add(self.coming.pop(0))


def joined(*subscriptions: list[str]) -> Any:
    members = [
        (str(number), None, ConsumerProtocolMemberMetadata(0, topics, b"").encode())
        for number, topics in enumerate(subscriptions)
    ]
    return SimpleNamespace(members=members)


async def leads(client: Client, response: Any, patience: float = 5.0) -> set[str]:
    """What was known when the partitions were assigned."""

    async def assign(_: Any) -> set[str]:
        return set(client.known)

    coordinator = SimpleNamespace(_client=client, _perform_assignment=assign)
    wait_for_topics(coordinator, patience)
    known: set[str] = await coordinator._perform_assignment(response)
    return known


async def test_a_leader_assigns_once_the_topics_of_all_members_are_listed() -> None:
    client = Client("tasks", "letters")
    assert await leads(client, joined(["tasks"], ["tasks", "letters"])) == {"tasks", "letters"}
    assert client.wanted == {"tasks", "letters"}


async def test_a_topic_that_never_comes_does_not_stop_the_group() -> None:
    assert await leads(Client("tasks"), joined(["tasks", "gone"]), patience=0.0) == set()
    assert await leads(Client("tasks"), joined(["tasks", "gone"]), patience=0.3) == {"tasks"}


class Channel:
    """Takes a record after some failures."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.taken = 0

    async def publish_message(self, _: object, wait: bool) -> None:
        assert not wait
        if self.failures:
            raise self.failures.pop(0)
        self.taken += 1


def not_taken(cause: Exception) -> ProducerSendError:
    error = ProducerSendError("Error while sending")
    error.__cause__ = cause
    return error


@pytest.fixture
def buffer(monkeypatch: pytest.MonkeyPatch) -> PatientBuffer:
    monkeypatch.setattr(PatientBuffer, "pause", 0.0)
    return PatientBuffer()


async def test_a_record_waits_for_a_broker_that_is_away(buffer: PatientBuffer) -> None:
    """Faust's own buffer ends at the first of these, and the application with it."""
    channel = Channel(not_taken(KafkaTimeoutError()), not_taken(NodeNotReadyError()))
    await buffer._send_pending(SimpleNamespace(message=SimpleNamespace(channel=channel)))  # type: ignore[arg-type]
    assert channel.taken == 1


async def test_a_record_that_no_broker_takes_is_given_up(buffer: PatientBuffer) -> None:
    channel = Channel(not_taken(MessageSizeTooLargeError()))
    await buffer._send_pending(SimpleNamespace(message=SimpleNamespace(channel=channel)))  # type: ignore[arg-type]
    assert (channel.taken, channel.failures) == (0, [])


class Failing:
    """A thread of which only the commit is real; taking the application down is what it must not do."""

    _commit = ConsumerThread._commit

    def __init__(self, error: KafkaError | None) -> None:
        self.error = error
        self.committed: dict[TopicPartition, OffsetAndMetadata] = {}
        self.tp_last_committed_at: dict[TP, float] = {}

    def _ensure_consumer(self) -> Any:
        return self

    def assignment(self) -> set[TP]:
        return {TP("tasks", 0)}

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        if self.error is not None:
            raise self.error
        self.committed.update(offsets)


@pytest.mark.parametrize("error", [IllegalStateError("revoked"), CommitFailedError("too late"), NodeNotReadyError()])
async def test_a_commit_that_fails_is_said_to_have_failed(error: KafkaError) -> None:
    thread = Failing(error)
    assert await thread._commit({TP("tasks", 0): 5}) is False  # type: ignore[misc]
    assert thread.tp_last_committed_at == {}


async def test_only_what_is_still_assigned_is_committed() -> None:
    thread = Failing(None)
    assert await thread._commit({TP("tasks", 0): 5, TP("tasks", 1): 7}) is True  # type: ignore[misc]
    assert thread.committed == {TopicPartition("tasks", 0): OffsetAndMetadata(5, "")}
    assert set(thread.tp_last_committed_at) == {TP("tasks", 0)}
    assert await thread._commit({TP("tasks", 1): 7}) is False  # type: ignore[misc]
