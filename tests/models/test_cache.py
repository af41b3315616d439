"""The disk budget: the least recently used goes, what anybody needs stays, and what went comes back by its name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streamapp.db import LoraRow, ModelRow, Registry, open_database, upgrade
from streamapp.errors import AppError
from streamapp.models import catalogue, shipped
from streamapp.models.cache import EVICTED, PINNED, PULLED_FROM, DiskCache, marked, save
from streamapp.models.fetching import Fetches
from streamapp.settings import Settings
from tests.models.publisher import Publisher
from tests.models.sites import Double, playing, sd15_file


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    url = f"sqlite+aiosqlite:///{tmp_path}/rows.db"
    await upgrade(url)
    database = open_database(url)
    await database.start()
    await shipped.seed(Registry(database))
    yield Registry(database)
    await database.close()


class Store:
    """A models folder with files of 100 bytes, and what is wanted and resident."""

    def __init__(self, registry: Registry, data: Path, limit: int | None) -> None:
        self.settings = Settings(data_dir=data, models_max_bytes=limit)
        self.registry = registry
        self.wanted: set[str] = set()
        self.resident: set[Any] = set()
        self.asked: list[str] = []
        self.changes = 0
        self.cache = DiskCache(
            self.settings, registry, wanted=self.is_wanted, resident=lambda: self.resident, changed=self.changed
        )

    def changed(self) -> None:
        self.changes += 1

    async def is_wanted(self, kind: str, name: str) -> bool:
        self.asked.append(f"{kind} {name}")
        return name in self.wanted

    async def add(
        self,
        name: str,
        used_at: int,
        *,
        path: str | None = None,
        kind: type = ModelRow,
        traits: dict[str, Any] | None = None,
    ) -> None:
        path = path or f"models/{name}.safetensors"
        file = self.settings.data_path / "models" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(100))
        os.utime(file, (0, 0))
        traits = {PULLED_FROM: f"civitai:1@{len(name)}", **(traits or {})}
        row = kind(name, "1", "sd15", "file:", path, digest=name * 8, size=100, traits=traits, last_used_at=used_at)
        await save(self.registry, row)

    def here(self) -> set[str]:
        return {path.stem for path in (self.settings.data_path / "models").rglob("*.safetensors")}

    async def evicted(self) -> set[str]:
        rows: list[ModelRow | LoraRow] = [*await self.registry.models(), *await self.registry.loras()]
        return {row.name for row in rows if row.traits.get(EVICTED)}


@pytest.fixture
async def store(registry: Registry, tmp_path: Path) -> Store:
    """Three models of 100 bytes; the limit is 350."""
    store = Store(registry, tmp_path / "data", 350)
    for at, name in ((3_000, "new"), (1_000, "old"), (2_000, "middle")):
        await store.add(name, at)
    return store


async def test_the_least_recently_used_makes_room_and_no_more_than_needed(store: Store) -> None:
    assert await store.cache.reserve("a", 50) == []
    assert [row.name for row in await store.cache.reserve("a", 120)] == ["old"]
    assert (store.here(), await store.evicted(), store.changes) == ({"new", "middle"}, {"old"}, 1)
    row = await store.registry.model("old")
    assert row is not None
    assert row.traits[PULLED_FROM] == "civitai:1@3"


async def test_without_a_limit_nothing_goes(registry: Registry, tmp_path: Path) -> None:
    store = Store(registry, tmp_path / "data", None)
    await store.add("old", 1)
    assert await store.cache.reserve("a", 10**12) == []
    assert store.here() == {"old"}


async def test_what_another_model_takes_its_parts_from_stays(store: Store) -> None:
    own = {"components": {"t5": {"path": "models/old.safetensors", "digest": "0" * 64}}, PULLED_FROM: None}
    await store.add("alone", 9_000, traits=own)
    evicted = await store.cache.reserve("a", 100)
    assert [row.name for row in evicted] == ["middle", "new"]
    assert store.here() == {"old", "alone"}


async def test_what_is_pinned_wanted_resident_or_nowhere_else_stays(store: Store) -> None:
    await store.add("pinned", 1, traits={PINNED: True})
    await store.add("own", 2, traits={PULLED_FROM: None})
    store.wanted, store.resident = {"old"}, {("model", "middle"), ("lora", "new")}
    with pytest.raises(AppError) as caught:
        await store.cache.reserve("a", 300)
    assert (caught.value.code, caught.value.status) == ("no_space", 507)
    assert store.here() == {"pinned", "own", "old", "middle", "new"}, "nothing goes when it would not suffice"
    store.wanted, store.resident = set(), {("lora", "old")}
    assert {row.name for row in await store.cache.reserve("a", 120)} == {"old", "middle", "new"}
    assert store.here() == {"pinned", "own"}


async def test_a_file_with_two_names_goes_only_when_both_may(store: Store) -> None:
    await store.add("twin", 500, path="models/old.safetensors", traits={PINNED: True})
    assert [row.name for row in await store.cache.reserve("a", 100)] == ["middle"]
    store.cache.release("a")
    row = await store.registry.model("twin")
    assert row is not None
    await save(store.registry, marked(row, PINNED, value=False))
    assert {row.name for row in await store.cache.reserve("b", 200)} == {"old", "twin"}
    assert store.here() == {"new"}


async def test_loras_count_and_go_like_models(store: Store) -> None:
    await store.add("brush", 10, path="loras/brush.safetensors", kind=LoraRow)
    assert [row.name for row in await store.cache.reserve("a", 20)] == ["brush"]
    assert "lora brush" in store.asked


async def test_what_was_promised_to_one_fetch_is_not_given_to_another(store: Store) -> None:
    await store.cache.reserve("a", 50)
    assert [row.name for row in await store.cache.reserve("b", 50)] == ["old"]
    store.cache.release("a")
    store.cache.release("b")
    assert await store.cache.reserve("c", 150) == []


async def test_a_task_that_names_it_while_it_goes_keeps_it(store: Store) -> None:
    async def just_now(kind: str, name: str) -> bool:
        store.asked.append(f"{kind} {name}")
        return store.asked.count(f"{kind} {name}") > 1

    cache = DiskCache(store.settings, store.registry, wanted=just_now)
    assert await cache.reserve("a", 100) == []
    assert (store.here(), await store.evicted()) == ({"old", "middle", "new"}, set())


async def test_what_ships_is_never_touched(store: Store) -> None:
    row = await store.registry.model("pocket")
    assert row is not None
    await save(store.registry, marked(row, PULLED_FROM, value=True))
    await store.cache.reserve("a", 350)
    assert (catalogue.HERE / "pocket").is_dir()
    assert "pocket" not in await store.evicted()
    assert store.here() == set()


async def test_a_fetch_makes_room_and_an_evicted_model_comes_back_by_its_name(
    registry: Registry, tmp_path: Path
) -> None:
    double = Double(Publisher(sd15_file()))
    size = len(double.publisher.body)
    async with playing(double) as url:
        settings = Settings(
            data_dir=tmp_path / "data",
            civitai_url=url,
            hub_url=url,
            allow_private_sources=True,
            models_max_bytes=size + 50,
        )
        store = Store(registry, tmp_path / "data", size + 50)
        cache = DiskCache(settings, registry, wanted=store.is_wanted)
        fetches = Fetches(settings, registry, cache)
        try:
            await store.add("old", 1)
            row = await fetches.once("civitai:123@456", "dream")
            assert (store.here(), await store.evicted()) == ({Path(row.path).stem}, {"old"})
            await save(registry, marked(row, PINNED, value=True))
            (settings.data_path / "models" / row.path).unlink()
            await save(registry, marked(marked(row, PINNED, value=True), EVICTED, value=True))
            again = await fetches.once("dream")
            assert (again.name, again.path, again.digest) == ("dream", row.path, row.digest)
            known = await registry.model("dream")
            assert known is not None
            assert (known.traits.get(EVICTED), known.traits.get(PINNED)) == (None, True)
            assert store.here() == {Path(row.path).stem}
        finally:
            await fetches.close()
