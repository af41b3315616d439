"""What a model with a small vocabulary knows, so that an answer can say when a prompt names nothing of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson

HERE = Path(__file__).parent


@cache
def vocabulary(file: str) -> tuple[tuple[str, ...], ...]:
    """The names of each thing that the model can draw, the usual one first; ``file`` is relative to this package."""
    concepts = orjson.loads((HERE / file).read_bytes())["concepts"]
    return tuple(tuple(concept["words"]) for concept in concepts)


def vocabulary_note(name: str, traits: Mapping[str, Any], text: str) -> str | None:
    """A sentence for the answer when ``text`` names nothing that the model can draw; ``None`` when it does.

    Only models whose traits name a word list (``words``) are judged.
    """
    file = traits.get("words")
    if not isinstance(file, str):
        return None
    known = vocabulary(file)
    if _names(file).search(text.lower()):
        return None
    some = ", ".join(names[0] for names in known[50::40])
    return (
        f"{name} draws {len(known)} things named by English words ({some} …) and found none in this prompt, so the "
        "picture will show something else; add a larger model for free prompts"
    )


@cache
def _names(file: str) -> re.Pattern[str]:
    """Any of the names as whole words, in the plural too."""
    names = sorted({name for names in vocabulary(file) for name in names}, key=len, reverse=True)
    return re.compile(rf"(?<![a-z])(?:{'|'.join(map(re.escape, names))})(?:e?s)?(?![a-z])")
