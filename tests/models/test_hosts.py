"""Hosts with disks of their own: each keeps to its budget and its own habits, and gets what it lacks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamapp.db import Delivery, ModelRow, Registry
from streamapp.errors import AppError
from streamapp.models.cache import EVICTED, PULLED_FROM, DiskCache
from streamapp.models.catalogue import locate, notes_root, place_of
from streamapp.models.fetching import Fetches
from streamapp.models.locks import locked
from streamapp.models.partial import STALE, arriving_bytes
from streamapp.models.shared import SharedWeights
from streamapp.models.verified import note_use
from streamapp.settings import Settings
from streamapp.storage import Storage
from tests.models.publisher import Publisher
from tests.models.sites import Double, file, playing, sd15_file
from tests.models.test_fleet import database, storage, unwanted

__all__ = ["database", "storage"]
DREAM = "civitai:123@456"


class Host:
    """One machine: its own folder, the common registry, and the storage of the fleet if it has one."""

    def __init__(self, settings: Settings, registry: Registry, shared: SharedWeights | None) -> None:
        self.settings, self.registry = settings, registry
        elsewhere = None if shared is None else shared.has
        self.cache = DiskCache(settings, registry, wanted=unwanted, elsewhere=elsewhere)
        self.fetches = Fetches(settings, registry, self.cache, shared=shared)

    def has(self, row: ModelRow) -> bool:
        return place_of(row, self.settings).exists()


Start = Callable[..., Host]


@pytest.fixture
def double() -> Double:
    return Double(Publisher(sd15_file()))


@pytest.fixture
async def host(double: Double, database: Any, storage: Storage, tmp_path: Path) -> AsyncIterator[Start]:
    hosts: list[Host] = []
    async with playing(double) as url:

        def start(name: str, *, fleet: bool = False, limit: int | None = None) -> Host:
            sites: Any = {"civitai_url": url, "hub_url": url, "allow_private_sources": True}
            settings = Settings(data_dir=tmp_path / name, models_max_bytes=limit, **sites)
            shared = SharedWeights(storage, Delivery(database)) if fleet else None
            hosts.append(Host(settings, Registry(database), shared))
            return hosts[-1]

        yield start
        for one in hosts:
            await one.fetches.close()


def another(double: Double, seed: int) -> None:
    """The page has another file of the same length now."""
    double.publisher.body = sd15_file(extra=np.full(3, seed, np.float32))
    double.version["files"] = [file(double.publisher)]


async def dream(host: Host) -> ModelRow:
    row = await host.fetches.once(DREAM, "dream")
    assert isinstance(row, ModelRow)
    return row


async def test_without_a_common_storage_a_host_fetches_what_it_lacks_from_the_publisher(
    host: Start, double: Double
) -> None:
    one, other = host("one"), host("other")
    row = await dream(one)
    assert await asyncio.gather(*(other.fetches.bring(row) for _ in range(3))) == [True] * 3
    assert locate(row, other.settings).read_bytes() == double.publisher.body
    assert double.publisher.sent == 2 * row.size, "a host fetched it twice"
    assert await one.registry.model("dream") == row, "nothing is said to the registry"


async def test_what_its_page_has_become_is_never_taken_for_what_it_was(host: Start, double: Double) -> None:
    one, other = host("one"), host("other")
    row = await dream(one)
    another(double, 1)
    with pytest.raises(AppError, match="another file is by now") as caught:
        await other.fetches.bring(row)
    assert caught.value.code == "not_found"
    double.version["files"][0]["hashes"] = {}
    with pytest.raises(AppError, match="SHA-256") as damaged:
        await other.fetches.bring(row)
    assert damaged.value.code == "wrong_digest"
    assert not other.has(row)


async def test_a_transfer_goes_on_when_nobody_waits_for_it(host: Start, double: Double) -> None:
    one, other = host("one"), host("other")
    row = await dream(one)
    waiting = asyncio.create_task(other.fetches.bring(row))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await other.fetches.bring(row) is True
    assert double.publisher.sent == 2 * row.size


async def test_a_folder_and_what_came_from_nowhere_are_not_brought(host: Start) -> None:
    one = host("one")
    for path in ("models/folder", "models/own.safetensors"):
        row = ModelRow("own", "1", "sd15", "file:", path, digest="ab" * 32, size=1)
        assert await one.fetches.bring(row) is False


async def test_a_file_that_the_fleet_has_leaves_one_disk_and_not_the_registry(host: Start, double: Double) -> None:
    size = len(double.publisher.body)
    one, other = host("one", fleet=True, limit=size + 500), host("other", fleet=True)
    row = await dream(one)
    assert await other.fetches.bring(row) is True
    assert [gone.name for gone in await one.cache.reserve("x", 1_000)] == ["dream"]
    assert (one.has(row), other.has(row)) == (False, True)
    known = await one.registry.model("dream")
    assert known is not None
    assert EVICTED not in known.traits, "other hosts have it, so no task has to wait for it"
    one.cache.release("x")
    assert await one.fetches.bring(row) is True
    assert double.publisher.sent == size, "the publisher was asked again"


async def test_without_a_fleet_what_made_room_says_so(host: Start, double: Double) -> None:
    one = host("one", limit=len(double.publisher.body) + 500)
    row = await dream(one)
    await one.cache.reserve("x", 1_000)
    known = await one.registry.model("dream")
    assert known is not None
    assert (one.has(row), known.traits[EVICTED]) == (False, True)


async def test_each_host_forgets_what_it_did_not_use_itself(host: Start, double: Double) -> None:
    rows, size = [], len(double.publisher.body)
    one, other = host("one", limit=2 * size + 1_500), host("other", limit=2 * size + 1_500)
    for seed, name in ((1, "a"), (2, "b")):
        another(double, seed)
        rows.append(await one.fetches.once(double.publisher.digest, name))
        assert await other.fetches.bring(rows[-1])
    for each, recent in ((one, 0), (other, 1)):
        notes = notes_root(each.settings)
        for note in notes.iterdir():
            os.utime(note, (1_000, 1_000))
        note_use(place_of(rows[recent], each.settings), notes)
    await one.registry.touch_model("a")
    assert [row.name for row in await one.cache.reserve("x", size)] == ["b"]
    assert [row.name for row in await other.cache.reserve("x", size)] == ["a"], "another host's habits decided"


async def test_what_other_processes_of_the_host_are_fetching_counts(host: Start, double: Double) -> None:
    size = len(double.publisher.body)
    one = host("one", limit=3 * size)
    row = await dream(one)
    target = place_of(row, one.settings).with_name("coming.safetensors")
    part = target.with_name(f"{target.name}.part")
    part.write_bytes(bytes(10))
    part.with_name(f"{part.name}.json").write_text(f'{{"total": {2 * size}}}')
    root = one.settings.data_path / "models"
    assert arriving_bytes(root, set()) == 2 * size
    assert [gone.name for gone in await one.cache.reserve("x", size)] == ["dream"]
    # Who goes on with it needs no room besides.
    assert await one.cache.reserve("x", 2 * size, target=target) == []


async def test_a_part_that_nobody_goes_on_with_is_deleted_after_a_day(tmp_path: Path) -> None:
    for name in ("left", "held", "new"):
        (tmp_path / f"{name}.safetensors.part").write_bytes(bytes(100))
        (tmp_path / f"{name}.safetensors.part.json").write_text("{}")
        if name != "new":
            at = (tmp_path / f"{name}.safetensors.part").stat().st_mtime - STALE - 60
            os.utime(tmp_path / f"{name}.safetensors.part", (at, at))
    async with locked(tmp_path / "held.safetensors"):
        assert arriving_bytes(tmp_path, set()) == 200
    assert {path.name.split(".")[0] for path in tmp_path.glob("*.part*")} == {"held", "new"}


async def test_marks_do_not_undo_what_others_have_noted(host: Start, double: Double) -> None:
    one = host("one", limit=len(double.publisher.body) + 500)
    row = await dream(one)
    held = partial(one.registry.edit, row)
    await held(lambda traits: {**traits, "fallback_model": "pocket"})
    await one.cache.reserve("x", 1_000)
    known = await one.registry.model("dream")
    assert known is not None
    assert (known.traits["fallback_model"], known.traits[PULLED_FROM]) == ("pocket", DREAM)
