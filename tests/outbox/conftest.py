"""The outbox over a real database, with a broker that a test switches off and on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamapp.db import Database, Delivery, Tasks, open_database, upgrade
from streamapp.errors import Unavailable
from streamapp.outbox import Outbox
from streamapp.settings import Settings

Outgoing = tuple[str, int | None, bytes, bytes]


class Broker:
    """Notes what it was sent, in order; refuses while ``down``."""

    def __init__(self) -> None:
        self.down = False
        self.refused = 0
        self.sent: list[tuple[str, int | None, str, bytes]] = []

    async def send(self, records: Sequence[Outgoing]) -> list[tuple[int, int] | Unavailable]:
        await asyncio.sleep(0)
        return [self._one(*record) for record in records]

    def _one(self, topic: str, partition: int | None, key: bytes, value: bytes) -> tuple[int, int] | Unavailable:
        if self.down:
            self.refused += 1
            return Unavailable("the broker is down")
        self.sent.append((topic, partition, key.decode(), value))
        return partition or 0, len(self.sent) - 1

    def keys(self, *, events: bool = False) -> list[str]:
        return [key for topic, _, key, _ in self.sent if (topic == "task_events") is events]


async def until(condition: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
    """Wait for a condition, with a bound."""
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, worker_id="web-1", partitions=4)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    await upgrade(settings.database_url)
    database = open_database(settings.database_url)
    await database.start()
    yield database
    await database.close()


@pytest.fixture
def tasks(database: Database) -> Tasks:
    return Tasks(database)


@pytest.fixture
def delivery(database: Database) -> Delivery:
    return Delivery(database)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
async def make(settings: Settings, delivery: Delivery, broker: Broker) -> AsyncIterator[Callable[..., Outbox]]:
    """Outboxes of one or several processes, closed at the end."""
    made: list[Outbox] = []

    def build(**given: Any) -> Outbox:
        outbox = Outbox(settings, delivery, broker.send, **given)
        made.append(outbox)
        return outbox

    yield build
    for outbox in made:
        await outbox.close()
