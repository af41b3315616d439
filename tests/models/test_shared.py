"""A fleet with one storage and a disk for each host."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamapp.db import Database, Delivery, open_database, upgrade
from streamapp.errors import Unavailable
from streamapp.models.download import WrongDigest
from streamapp.models.shared import SharedWeights, weights_key
from streamapp.storage import LocalStorage
from tests.models.publisher import checkpoint

BODY = checkpoint(9_000_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[LocalStorage]:
    storage = LocalStorage(tmp_path / "storage")
    await storage.start()
    yield storage
    await storage.close()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite+aiosqlite:///{tmp_path}/tasks.sqlite"
    await upgrade(url)
    database = open_database(url)
    await database.start()
    yield database
    await database.close()


@pytest.fixture
def shared(storage: LocalStorage, database: Database) -> SharedWeights:
    return SharedWeights(storage, Delivery(database))


def here(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.safetensors"
    path.write_bytes(BODY)
    return path


async def test_what_one_host_gives_another_takes(shared: SharedWeights, tmp_path: Path) -> None:
    target, seen = tmp_path / "other" / "taken.safetensors", []
    assert await shared.take(DIGEST, target) is None
    await shared.give(here(tmp_path / "one"), DIGEST)
    fetched = await shared.take(DIGEST, target, lambda done, total: seen.append((done, total)))
    assert fetched is not None
    assert (fetched.path, fetched.digest, fetched.size) == (target, DIGEST, len(BODY))
    assert target.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert sorted(path.name for path in target.parent.iterdir()) == ["taken.safetensors", "taken.safetensors.lock"]


async def test_a_file_is_given_once(shared: SharedWeights, storage: LocalStorage, tmp_path: Path) -> None:
    path = here(tmp_path / "one")
    await shared.give(path, DIGEST)
    before = await storage.head(weights_key(DIGEST))
    path.write_bytes(b"whatever lies here later")
    await shared.give(path, DIGEST)
    assert await storage.head(weights_key(DIGEST)) == before


async def test_what_came_before_a_break_is_not_asked_for_again(
    shared: SharedWeights, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shared.give(here(tmp_path / "one"), DIGEST)
    target, read = tmp_path / "taken.safetensors", storage.read
    asked: list[int] = []

    async def breaks(key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        asked.append(start)
        async for piece in read(key, start, 5_000_000 if len(asked) == 1 else end):
            yield piece
        if len(asked) == 1:
            raise Unavailable("the storage went away")

    monkeypatch.setattr(storage, "read", breaks)
    with pytest.raises(Unavailable):
        await shared.take(DIGEST, target)
    assert not target.exists()
    fetched = await shared.take(DIGEST, target)
    assert fetched is not None
    assert fetched.resumed == asked[1] == 5_000_000
    assert target.read_bytes() == BODY


async def test_a_damaged_copy_is_refused_and_removed(
    shared: SharedWeights, storage: LocalStorage, tmp_path: Path
) -> None:
    await storage.put(weights_key(DIGEST), bytes(len(BODY)), "application/octet-stream")
    with pytest.raises(WrongDigest, match="damaged"):
        await shared.take(DIGEST, tmp_path / "taken.safetensors")
    assert not (tmp_path / "taken.safetensors").exists()
    assert await shared.take(DIGEST, tmp_path / "taken.safetensors") is None


async def test_one_host_at_a_time_works_on_a_digest(
    storage: LocalStorage, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamapp.models.shared.POLL", 0.01)
    inside: list[int] = []
    most = 0

    async def host() -> None:
        nonlocal most
        async with SharedWeights(storage, Delivery(database)).turn(DIGEST):
            inside.append(1)
            most = max(most, len(inside))
            await asyncio.sleep(0.02)
            inside.pop()

    async with asyncio.timeout(20):
        await asyncio.gather(*(host() for _ in range(4)))
    assert most == 1


async def test_a_storage_that_is_away_does_not_undo_a_fetch(
    shared: SharedWeights, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise Unavailable("the storage is away")

    monkeypatch.setattr(storage, "put", away)
    await shared.give(here(tmp_path / "one"), DIGEST)
    assert await storage.head(weights_key(DIGEST)) is None
