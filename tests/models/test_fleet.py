"""Two hosts, each with its own disk, one registry and one storage: the publisher is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from streamapp.db import Database, Delivery, ModelRow, Registry, open_database, upgrade
from streamapp.models.cache import DiskCache
from streamapp.models.catalogue import locate, place_of
from streamapp.models.fetching import Fetches
from streamapp.models.shared import SharedWeights
from streamapp.settings import Settings
from streamapp.storage import LocalStorage, Storage
from tests.models.publisher import Publisher
from tests.models.sites import Double, playing, sd15_file


@dataclass
class Host:
    """One machine of the fleet."""

    settings: Settings
    cache: DiskCache
    fetches: Fetches
    shared: SharedWeights

    async def brings(self, row: ModelRow) -> bool:
        return await self.shared.bring(row, place_of(row, self.settings), partial(self.cache.reserve, row.digest))


async def unwanted(*_: object) -> bool:
    return False


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite+aiosqlite:///{tmp_path}/tasks.sqlite"
    await upgrade(url)
    database = open_database(url)
    await database.start()
    yield database
    await database.close()


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    storage = LocalStorage(tmp_path / "storage")
    await storage.start()
    yield storage
    await storage.close()


@pytest.fixture
def double() -> Double:
    return Double(Publisher(sd15_file()))


@pytest.fixture
async def host(
    double: Double, database: Database, storage: Storage, tmp_path: Path
) -> AsyncIterator[Callable[[str], Host]]:
    hosts: list[Host] = []
    async with playing(double) as url:

        def start(name: str) -> Host:
            settings = Settings(
                data_dir=tmp_path / name, civitai_url=url, hub_url=url, allow_private_sources=True
            )  # fmt: skip
            registry = Registry(database)
            cache = DiskCache(settings, registry, wanted=unwanted)
            shared = SharedWeights(storage, Delivery(database))
            hosts.append(Host(settings, cache, Fetches(settings, registry, cache, shared=shared), shared))
            return hosts[-1]

        yield start
        for one in hosts:
            await one.fetches.close()


async def test_the_second_host_takes_what_the_first_one_fetched(
    host: Callable[[str], Host], double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamapp.models.shared.POLL", 0.02)
    one, other = host("one"), host("other")
    first, second = await asyncio.gather(
        one.fetches.once("civitai:123@456", "dream"), other.fetches.once("civitai:123@456", "dream")
    )
    assert first.digest == second.digest == double.publisher.digest
    assert double.publisher.sent == len(double.publisher.body), "the publisher was asked twice"
    for each in (one, other):
        assert locate(first, each.settings).read_bytes() == double.publisher.body


async def test_a_worker_brings_what_its_registry_names_and_its_disk_lacks(host: Callable[[str], Host]) -> None:
    one, other = host("one"), host("other")
    row = await one.fetches.once("civitai:123@456", "dream")
    assert isinstance(row, ModelRow)
    assert await other.brings(row) is True
    assert locate(row, other.settings).stat().st_size == row.size
    assert await other.brings(row) is True


async def test_without_a_copy_nothing_is_brought(host: Callable[[str], Host], storage: Storage) -> None:
    one, other = host("one"), host("other")
    row = await one.fetches.once("civitai:123@456", "dream")
    assert isinstance(row, ModelRow)
    await storage.delete(f"weights/{row.digest[:2]}/{row.digest}.safetensors")
    assert await other.brings(row) is False
    assert not place_of(row, other.settings).exists()
