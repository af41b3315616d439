"""What a model with a small vocabulary knows, so that an answer can say when a prompt names nothing of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson

HERE = Path(__file__).parent
_LANGUAGES = {"zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish"}


@cache
def vocabulary(file: str) -> tuple[tuple[str, ...], ...]:
    """The English names of each thing that the model can draw, the usual one first; ``file`` is in this package."""
    return tuple(tuple(concept["words"]) for concept in _concepts(file))


def vocabulary_note(name: str, traits: Mapping[str, Any], text: str) -> str | None:
    """A sentence for the answer when ``text`` names nothing that the model can draw; ``None`` when it does.

    Only models whose traits name a word list (``words``) are judged.
    """
    file = traits.get("words")
    if not isinstance(file, str) or _names(file).search(text.lower()):
        return None
    known = vocabulary(file)
    some = ", ".join(names[0] for names in known[50::40])
    *most, last = ("English", *(_LANGUAGES.get(code, code) for code in _others(file)))
    languages = f"{', '.join(most)} or {last}" if most else last
    return (
        f"{name} draws {len(known)} things named by {languages} words ({some} …) and found none in this prompt, so the "
        "picture will show something else; add a larger model for free prompts"
    )


@cache
def _concepts(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = orjson.loads((HERE / file).read_bytes())["concepts"]
    return found


@cache
def _others(file: str) -> tuple[str, ...]:
    """Codes of the languages besides English, in their order."""
    return tuple(dict.fromkeys(code for concept in _concepts(file) for code in concept.get("others", {})))


@cache
def _names(file: str) -> re.Pattern[str]:
    """Any of the names as whole words, in the plural too; Chinese has no blanks between words, so any part counts."""
    plain = {name for names in vocabulary(file) for name in names}
    joined: set[str] = set()
    for concept in _concepts(file):
        for name in concept.get("others", {}).values():
            (plain if name.isascii() or any("a" <= letter <= "ÿ" for letter in name) else joined).add(name)
    spaced = rf"(?<!\w)(?:{_any(plain)})(?:e|e?[ns])?(?!\w)"
    return re.compile(f"{spaced}|{_any(joined)}" if joined else spaced)


def _any(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=lambda name: (-len(name), name))))
