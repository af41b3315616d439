"""Parameters and recipes to start from."""

from __future__ import annotations

from typing import Any

from streamapp.generation import GenerationParams, LoraRef, Size
from streamapp.recipe import Origin, image_recipe

DIGEST, BRUSH = "ab" * 32, "cd" * 32


def make_params(**changes: Any) -> GenerationParams:
    """A plain request for two pictures, with changes."""
    fields: dict[str, Any] = {
        "text": "a cute panda",
        "prompt": "a cute panda, sticker, white border",
        "style": "sticker",
        "negative_prompt": "blurry, text",
        "model": "pocket",
        "family": "sd15",
        "loras": (LoraRef(name="brush", weight=0.75),),
        "drawn": Size(width=128, height=128),
        "delivered": Size(width=512, height=512),
        "steps": 20,
        "guidance": 3.0,
        "sampler": "DDIM",
        "seed": 1234,
        "n": 2,
        "notes": ("drawn smaller",),
    }
    return GenerationParams(**(fields | changes))


def make_recipe(params: GenerationParams | None = None, index: int = 0) -> dict[str, Any]:
    """The recipe of one of its pictures."""
    origin = Origin("img-20261123-x", index, DIGEST, 1_795_422_574_123, {"brush": BRUSH}, {"brush": "0123456789ab"})
    return image_recipe(params or make_params(), origin)
