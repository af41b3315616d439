"""Models and LoRAs that are known here."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from streamapp.db import Database, LoraRow, ModelRow, Registry
from streamapp.errors import Unavailable

POCKET = ModelRow(
    "pocket", "1", "sd15", "package:", "models/pocket", "ab" * 32, 12_345_678_901, {"native": [128, 128], "名": "熊猫"}
)
INK = LoraRow("ink", "3", "sd15", "https://example.org/1", "ink.safetensors", "cd" * 32, 42, {"words": ["ink style"]})


async def test_a_model_is_added_replaced_and_found(registry: Registry) -> None:
    await registry.add_model(POCKET)
    assert await registry.model("pocket") == POCKET
    better = replace(POCKET, traits={"native": [256, 256]}, digest="ef" * 32)
    await registry.add_model(better)
    assert await registry.models() == [better]
    assert await registry.model("Pocket") is None
    assert await registry.loras() == []


async def test_a_lora_is_added_and_found(registry: Registry) -> None:
    await registry.add_lora(INK)
    assert await registry.lora("ink") == INK
    assert await registry.loras() == [INK]
    assert await registry.models() == []


async def test_the_newest_version_is_meant_by_the_name(registry: Registry, database: Database) -> None:
    await registry.add_model(POCKET)
    start = await database.now()
    while await database.now() == start:
        await asyncio.sleep(0.001)
    await registry.add_model(replace(POCKET, version="0-rebuilt"))
    newest = await registry.model("pocket")
    assert newest is not None
    assert newest.version == "0-rebuilt"
    assert await registry.model("pocket", "1") == POCKET
    assert await registry.model("pocket", "2") is None


async def test_use_is_noted(registry: Registry, database: Database) -> None:
    await registry.add_model(POCKET)
    await registry.add_lora(INK)
    before = await database.now()
    await registry.touch_model("pocket")
    await registry.touch_lora("ink")
    model, lora = await registry.model("pocket"), await registry.lora("ink")
    assert model is not None
    assert lora is not None
    assert (model.last_used_at or 0) >= before
    assert (lora.last_used_at or 0) >= before


async def test_many_processes_may_add_the_same_model(registry: Registry) -> None:
    await asyncio.gather(*(registry.add_model(POCKET) for _ in range(20)))
    assert await registry.models() == [POCKET]


async def test_a_database_without_tables_says_what_to_do(database_url: str) -> None:
    from streamapp.db import open_database

    database = open_database(database_url)
    await database.start()
    with pytest.raises(Unavailable, match="streamapp db upgrade"):
        await Registry(database).models()
    await database.close()


async def test_a_name_is_given_to_the_first_that_asks_for_it(registry: Registry) -> None:
    for name in ("pocket", "a", "b", "c", "d", "e"):  # a race is not lost every time
        rows = [replace(POCKET, name=name, version=str(number), digest=f"{number}" * 64) for number in range(6)]
        first = await asyncio.gather(*(registry.insert(row) for row in rows))
        assert sorted(first) == [False] * 5 + [True]
        assert [row for row in await registry.models() if row.name == name] == [rows[first.index(True)]]
    # Models and LoRAs have names of their own.
    assert await registry.insert(replace(INK, name="pocket"))


async def test_edits_at_the_same_moment_all_count_and_leave_the_rest_alone(registry: Registry) -> None:
    await registry.add_lora(INK)
    await registry.add_lora(replace(INK, version="4"))

    def once_more(traits: dict[str, Any]) -> dict[str, Any]:
        return {**traits, "times": traits.get("times", 0) + 1}

    assert all(await asyncio.gather(*(registry.edit(INK, once_more) for _ in range(8))))
    edited, other = await registry.lora("ink", "3"), await registry.lora("ink", "4")
    assert edited == replace(INK, traits={**INK.traits, "times": 8})
    assert other == replace(INK, version="4")
    assert not await registry.edit(POCKET, once_more)
