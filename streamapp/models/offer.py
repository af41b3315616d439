"""Weights that a site offers, as its page describes them, and what its words mean here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from streamapp.models.download import Remote

#: A digest as it may become part of a path.
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Offer:
    """One version of a model or LoRA.

    Attributes:
        kind: where it is registered.
        title: what its page calls it; the local name unless the operator gives another.
        version: what its page calls this version.
        family: the architecture, where the page tells it; else the tensors will.
        file: the weights.
        traits: licence, trigger words, maturity, defaults of the variant, the page it comes from.
        about: bytes as the page rounds them, where ``file`` does not tell them exactly.
        reference: what leads to this very file again.
    """

    kind: Literal["model", "lora", "controlnet"]
    title: str
    version: str
    family: str | None
    file: Remote
    traits: Mapping[str, Any] = field(default_factory=dict)
    about: int | None = None
    reference: str = ""


#: Civitai's words for base models by how they begin, the longest first; the list is open, so what is not here is not
#: known rather than guessed. Pony V7 is AuraFlow's layout, not SDXL's.
BASES: Mapping[str, str | None] = {
    "Pony V7": None,
    "SD 1.": "sd15",
    "SD 2.": "sd15",
    "SDXL": "sdxl",
    "Pony": "sdxl",
    "Illustrious": "sdxl",
    "NoobAI": "sdxl",
    "SD 3": "sd3",
    "Flux.1 Kontext": None,
    "Flux.1": "flux",
    "Qwen": "qwen_image",
}
#: What few-step variants are drawn with, by a word of their base model's or version's name.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "lcm": {"variant": "lcm", "sampler": "LCM", "steps": 6, "guidance": 1.5},
    "turbo": {"variant": "turbo", "sampler": "Euler a", "steps": 4, "guidance": 1.0},
    "lightning": {"variant": "lightning", "sampler": "Euler", "steps": 6, "guidance": 1.0},
    "hyper": {"variant": "hyper", "sampler": "Euler", "steps": 8, "guidance": 1.0},
}


def family_of_base(base: str) -> str | None:
    """Our family for Civitai's ``baseModel``; ``None`` when it is not one that is drawn here."""
    return next((family for start, family in BASES.items() if base.startswith(start)), None)


def variant_of(*names: str) -> dict[str, Any]:
    """The defaults of a few-step variant, when one of the names says that it is one."""
    words = {word for name in names for word in name.lower().replace("-", " ").replace("_", " ").split()}
    return next((dict(traits) for word, traits in VARIANTS.items() if word in words), {})
