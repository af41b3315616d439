"""What ships with the package and is registered at the first start: a small model, and LoRAs for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.models.words import vocabulary

#: Source of a row whose path is relative to this package.
PACKAGE: Final = "package:"

POCKET = ModelRow(
    name="pocket",
    version="1",
    family="sd15",
    source=PACKAGE,
    path="pocket",
    digest="d0ff74d43befaeca97375e6e8c730f279fc3e9707dfd49978be9a9d80fabc073",
    size=11_217_726,
    traits={
        "title": "Pocket: 236 things in small, from English words",
        "license": "Apache-2.0",
        "words": "pocket/words.json",
        # Measured by eye: at 136 pixels and above subjects double, below 104 they are cut off.
        "native": 128,
        "min_side": 104,
        "max_side": 128,
        "max_pixels": 128 * 128,
        "steps": 20,
        # 2 to 3 is best; from 5 on the ground gets dirty.
        "guidance": 3.0,
        "sampler": "DDIM",
        # Its text encoder has two layers.
        "clip_skips": 2,
        "prompt_tokens": 32,
    },
)

#: Styles for it, to try several adapters with on a fresh machine.
LORAS: Final[tuple[LoraRow, ...]] = ()


class Shelf(Protocol):
    """The part of the registry that what ships is written to."""

    async def models(self) -> list[ModelRow]:
        """Every checkpoint."""

    async def loras(self) -> list[LoraRow]:
        """Every LoRA."""

    async def add_model(self, row: ModelRow) -> None:
        """Insert or replace by name and version."""

    async def add_lora(self, row: LoraRow) -> None:
        """Insert or replace by name and version."""

    async def remove_model(self, name: str, version: str | None = None) -> list[ModelRow]:
        """Forget one version."""

    async def remove_lora(self, name: str, version: str | None = None) -> list[LoraRow]:
        """Forget one version."""


async def seed(shelf: Shelf) -> None:
    """Register what ships; harmless when it is there already: what was noted about its files stays.

    What an earlier release brought is forgotten, as its files are gone. A LoRA that somebody else registered under
    the name of one that ships keeps it.
    """
    models = {(row.name, row.version): row for row in await shelf.models()}
    for row in models.values():
        if row.source == PACKAGE and (row.name, row.version) != (POCKET.name, POCKET.version):
            await shelf.remove_model(row.name, row.version)
    known = models.get((POCKET.name, POCKET.version))
    noted = {} if known is None or known.digest != POCKET.digest else known.traits
    await shelf.add_model(replace(POCKET, traits={**noted, **POCKET.traits}))
    await _seed_loras(shelf)


async def _seed_loras(shelf: Shelf) -> None:
    there = {(row.name, row.version): row for row in await shelf.loras()}
    ours = {(row.name, row.version) for row in LORAS}
    for row in there.values():
        if row.source == PACKAGE and (row.name, row.version) not in ours:
            await shelf.remove_lora(row.name, row.version)
    taken = {row.name for row in there.values() if row.source != PACKAGE}
    for lora in LORAS:
        if lora.name in taken:
            continue
        known = there.get((lora.name, lora.version))
        noted = {} if known is None or known.digest != lora.digest else known.traits
        await shelf.add_lora(replace(lora, traits={**noted, **lora.traits}))


def pocket_words() -> tuple[str, ...]:
    """The things that the model that ships can draw, one word or phrase for each."""
    return tuple(names[0] for names in vocabulary(POCKET.traits["words"]))
