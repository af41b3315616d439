"""Facts about each family of models that are needed without loading one: limits and defaults.

A model's own ``traits`` in the registry override the family's; see :func:`traits_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from streamapp.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Traits:
    """What a checkpoint is best used with, and what it can draw.

    Attributes:
        native: side in pixels of the square it was trained at.
        min_side, max_side: shortest and longest side it draws well, pixels.
        max_pixels: largest area it draws, pixels.
        size_step: sides are multiples of this, pixels.
        latent_factor: pixels per latent along a side.
        steps, guidance, sampler: the defaults of a request that leaves them open.
        clip_skip: from which of the text encoder's last layers prompts are read, 1 the last, as A1111 counts.
        clip_skips: how many layers that choice has.
        prompt_tokens: length of one text window, begin and end tokens included.
    """

    native: int
    min_side: int
    max_side: int
    max_pixels: int
    size_step: int = 8
    latent_factor: int = 8
    steps: int = 20
    guidance: float = 7.0
    sampler: str = "DPM++ 2M"
    clip_skip: int = 1
    clip_skips: int = 12
    prompt_tokens: int = 77


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture; ``traits`` are those of an ordinary checkpoint of it."""

    name: str
    title: str
    traits: Traits


FAMILIES: Mapping[str, Family] = {
    # Beyond about 768x1024 a checkpoint trained at 512x512 repeats its subject.
    "sd15": Family(
        "sd15", "Stable Diffusion 1.x", Traits(native=512, min_side=256, max_side=1024, max_pixels=768 * 1024)
    ),
    # Trained at about one megapixel in forty aspect ratios, the longest of them 4:1; far below it falls apart.
    "sdxl": Family(
        "sdxl",
        "Stable Diffusion XL",
        Traits(native=1024, min_side=512, max_side=2048, max_pixels=1024 * 1536, steps=30, guidance=6.0),
    ),
}


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        InvalidRequest: when it is not known; names those that are.
    """
    found = FAMILIES.get(name)
    if found is None:
        near = get_close_matches(name, FAMILIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(FAMILIES)}"
        raise InvalidRequest(f"family {name!r} is not known{hint}", field="family", known=list(FAMILIES))
    return found


_FIELDS = frozenset(field.name for field in fields(Traits))


def traits_of(family_name: str, own: Mapping[str, Any] | None = None) -> Traits:
    """The family's traits with the model's own on top; keys of other kinds (licence, trigger words …) are skipped."""
    merged = asdict(family(family_name).traits)
    merged.update({key: value for key, value in (own or {}).items() if key in _FIELDS})
    return Traits(**merged)
