"""What ships with the package and is registered at the first start: a small model, and LoRAs for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Protocol

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.models.words import vocabulary

#: Source of a row whose path is relative to this package.
PACKAGE: Final = "package:"

POCKET = ModelRow(
    name="pocket",
    version="2",
    family="sd15",
    source=PACKAGE,
    path="pocket",
    digest="a1e8abf4a28d29e334a53a2e8161cd89e1283d0073959e7de194e33d982b8785",
    size=11_561_952,
    traits={
        "title": "Pocket: 286 things in small, from words in five languages",
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


def _style(name: str, digest: str, autov3: str, looks: str) -> LoraRow:
    """A LoRA on the attention of the model above: no other checkpoint has layers of these widths."""
    traits: dict[str, Any] = {
        "title": f"{name.capitalize()}: {looks}; for pocket",
        "license": "Apache-2.0",
        "base_model": POCKET.name,
    }
    traits |= {"format": "diffusers", "rank": 8, "trigger_words": [], "autov3": autov3}
    return LoraRow(name, "1", POCKET.family, PACKAGE, f"loras/{name}.safetensors", digest, 187_752, traits)


#: Styles for it, to try several adapters with on a fresh machine.
LORAS: Final = (
    _style("ink", "87c8e8e92574d2ec905d5e91d89827e982c16c8fdffc91a6fb172d3d80cb23b2", "4d213516cd4a", "dark contours"),
    _style(
        "duotone", "a6320abfd4d125fa02f46e51f9a6a2503bea97fb32477df22612da6a59b32009", "eaa567514706", "violet, orange"
    ),
)


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

    Other versions of it, which an earlier release brought, are forgotten, as their files are gone. A LoRA that
    somebody registered under the name of one that ships keeps it.
    """
    models = {(row.name, row.version): row for row in await shelf.models()}
    for row in models.values():
        if row.name == POCKET.name and row.version != POCKET.version and row.source == PACKAGE:
            await shelf.remove_model(row.name, row.version)
    known = models.get((POCKET.name, POCKET.version))
    noted = {} if known is None or known.digest != POCKET.digest else known.traits
    await shelf.add_model(replace(POCKET, traits={**noted, **POCKET.traits}))
    await _seed_loras(shelf)


async def _seed_loras(shelf: Shelf) -> None:
    there = {(row.name, row.version): row for row in await shelf.loras()}
    taken = {row.name for row in there.values() if row.source != PACKAGE}
    for lora in LORAS:
        if lora.name in taken:
            continue
        for name, version in there:
            if name == lora.name and version != lora.version:
                await shelf.remove_lora(name, version)
        known = there.get((lora.name, lora.version))
        noted = {} if known is None or known.digest != lora.digest else known.traits
        await shelf.add_lora(replace(lora, traits={**noted, **lora.traits}))


def pocket_words() -> tuple[str, ...]:
    """The things that the model that ships can draw, one word or phrase for each."""
    return tuple(names[0] for names in vocabulary(POCKET.traits["words"]))
