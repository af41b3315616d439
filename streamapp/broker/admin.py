"""What the rest of the service asks a broker beside producing and consuming: topics, offsets, old records.

One port for both brokers, so that the outbox, the reconciler, ``doctor`` and the command line know neither
Faust nor a driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from streamapp.broker.record import TP, Record
from streamapp.errors import PartitionMismatch

__all__ = ["TP", "Admin", "BrokerSettings", "Record", "TopicSpec", "check_partitions", "open_admin"]


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it must exist; ``config`` takes Kafka's topic settings (``retention.ms``, ``cleanup.policy`` …)."""

    name: str
    partitions: int
    replication: int = 1
    config: Mapping[str, str] = field(default_factory=dict)


class Admin(Protocol):
    """Questions and orders to a broker. Every method raises ``Unavailable`` when the broker does not answer."""

    async def start(self) -> None:
        """Connect. Call once, before anything else."""

    async def close(self) -> None:
        """Give connections back. Safe to call twice."""

    async def ping(self) -> None:
        """Return when the broker answered, else raise ``Unavailable``."""

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create what is missing and return the created names; ``PartitionMismatch`` when a topic differs."""

    async def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Number of partitions of each topic that exists; missing topics are left out."""

    async def committed(self, group: str, topics: Iterable[str]) -> dict[TP, int]:
        """Next offset the group would read, for every partition it ever committed."""

    async def bounds(self, topics: Iterable[str]) -> dict[TP, tuple[int, int]]:
        """``(first, end)`` per partition: the oldest offset still there and the one the next record gets."""

    async def offsets_since(self, topics: Iterable[str], at: int) -> dict[TP, int]:
        """Per partition the oldest offset written at or after ``at`` (ms since 1970); its end where there is none."""

    async def read(self, topic: str, partition: int, start: int, limit: int) -> list[Record]:
        """At most ``limit`` records from offset ``start`` on; ``NotFound`` for an unknown partition."""


class BrokerSettings(Protocol):
    """The part of the settings that an admin needs."""

    @property
    def broker(self) -> str:
        """``embedded://`` or ``kafka://host:port,…``."""

    @property
    def log_path(self) -> Path:
        """File of the embedded log."""


def check_partitions(specs: Iterable[TopicSpec], existing: Mapping[str, int]) -> list[TopicSpec]:
    """The specs that do not exist yet; raises ``PartitionMismatch`` with what to do for one that differs."""
    missing = []
    for spec in specs:
        found = existing.get(spec.name)
        if found is None:
            missing.append(spec)
        elif found != spec.partitions:
            raise PartitionMismatch(
                f"topic {spec.name} has {found} partitions, the settings ask for {spec.partitions}: "
                f"set STREAMAPP_PARTITIONS={found}, or delete the topic and create it again",
                topic=spec.name,
                found=found,
                wanted=spec.partitions,
            )
    return missing


def open_admin(settings: Any) -> Admin:
    """The admin of the broker that the settings name, not started yet.

    ``settings`` is a :class:`BrokerSettings`; the Kafka admin also reads the ``kafka_*`` security fields, the
    embedded one ``embedded_max_bytes``.
    """
    if str(settings.broker).startswith("embedded:"):
        from streamapp.broker.embedded.admin import EmbeddedAdmin

        return EmbeddedAdmin(settings.log_path, max_bytes=getattr(settings, "embedded_max_bytes", None))
    from streamapp.broker.kafka_admin import KafkaAdmin

    return KafkaAdmin(settings)
