"""What ships: its words, and how it joins the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from streamapp.db import LoraRow, ModelRow, Registry, open_database, upgrade
from streamapp.models.catalogue import HERE, locate
from streamapp.models.digest import identify
from streamapp.models.shipped import LORAS, POCKET, pocket_words, seed
from streamapp.models.words import vocabulary_note
from streamapp.settings import load_settings


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    url = f"sqlite+aiosqlite:///{tmp_path}/rows.db"
    await upgrade(url)
    database = open_database(url)
    await database.start()
    yield Registry(database)
    await database.close()


def test_the_rows_name_the_weights_that_ship() -> None:
    rows: list[ModelRow | LoraRow] = [POCKET, *LORAS]
    for row in rows:
        assert identify(HERE / row.path) == (row.digest, row.size)


def test_the_words_of_the_model_that_ships() -> None:
    words = pocket_words()
    assert len(words) == 286
    assert {"cat", "dog", "fish", "horse", "dragon", "saxophone"} <= set(words)
    assert all(word in (HERE / "pocket" / "MODEL_CARD.md").read_text().replace("\n", " ") for word in words)


@pytest.mark.parametrize(
    "text",
    [
        "a cute panda",
        "two PANDAS in the snow",
        "masterpiece, best quality, rocket, 8k",
        "cherries",
        "a T-Shirt",
        "一只可爱的熊猫",
        "zwei Hunde",
        "un chat noir",
    ],
)
def test_a_prompt_that_names_something_known_needs_no_note(text: str) -> None:
    assert vocabulary_note("pocket", POCKET.traits, text) is None


@pytest.mark.parametrize("text", ["一辆坦克", "Katzenjammer", "a concatenation of categories", "", "the president"])
def test_a_prompt_that_names_nothing_known_gets_a_note(text: str) -> None:
    note = vocabulary_note("pocket", POCKET.traits, text)
    assert note is not None
    assert "286 things" in note
    assert vocabulary_note("dreamy", {}, text) is None


async def test_seeding_registers_all_that_ships(registry: Registry, tmp_path: Path) -> None:
    await seed(registry)
    assert await registry.models() == [POCKET]
    assert set(map(str, await registry.loras())) == set(map(str, LORAS))
    settings = load_settings({}, data_dir=tmp_path / "data")
    assert locate(POCKET, settings) == HERE / "pocket"


async def test_seeding_again_keeps_what_was_noted_and_renews_the_rest(registry: Registry) -> None:
    await registry.add_model(replace(POCKET, traits={**POCKET.traits, "pinned": True, "steps": 1}))
    await seed(registry)
    assert await registry.models() == [replace(POCKET, traits={**POCKET.traits, "pinned": True})]


async def test_seeding_forgets_other_versions_and_leaves_names_that_are_taken(registry: Registry) -> None:
    ink, duotone = sorted(LORAS, key=lambda row: row.name, reverse=True)
    mine = replace(ink, version="9", source="file:", digest="ab" * 32)
    await registry.add_model(replace(POCKET, version="0", digest="cd" * 32))
    await registry.add_lora(mine)
    await registry.add_lora(replace(duotone, version="0", digest="ef" * 32))
    for _ in range(2):
        await seed(registry)
        assert await registry.models() == [POCKET]
        assert await registry.loras() == [duotone, mine]
