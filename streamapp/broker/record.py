"""The values that travel between brokers and their callers. No driver is imported here."""

from __future__ import annotations

from typing import NamedTuple


class TP(NamedTuple):
    """One partition of a topic; equal to, and hashing like, the tuples of Faust and aiokafka."""

    topic: str
    partition: int


class Record(NamedTuple):
    """One stored message.

    ``timestamp`` is in milliseconds since the epoch; ``value`` is ``None`` for a tombstone.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
