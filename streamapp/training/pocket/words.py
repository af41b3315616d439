"""What the model is taught to draw, and the words around it (``words.json``)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from streamapp.training.pocket.packages import read

#: Languages whose nouns are taught beside English ones, as the data has them.
LANGUAGES = ("zh", "de", "fr", "es")
#: What names of emoji say beside the thing: "Hundegesicht", "cara de perro".
_ASIDE = {
    "zh": re.compile(r"(?<=.)(脸|头|的脸)$"),
    "de": re.compile(r"(?<=\w)(gesicht|kopf)$", re.IGNORECASE),
    "fr": re.compile(r"^(tête|visage|face) (de |d’|d')", re.IGNORECASE),
    "es": re.compile(r"^(cara|cabeza) (de |del )", re.IGNORECASE),
}
#: German compounds that end in "face" keep a joint: "Hundegesicht" is "Hunde".
_GERMAN = {
    "Affen": "Affe",
    "Hunde": "Hund",
    "Katzen": "Katze",
    "Tiger": "Tiger",
    "Mäuse": "Maus",
    "Schweine": "Schwein",
}
_TABLE = Path(__file__).with_name("words.json")


@dataclass(frozen=True)
class Concept:
    """One thing.

    Attributes:
        icon: its name in the icon package.
        words: English names, the usual one first.
        others: names in other languages, by language.
    """

    icon: str
    words: tuple[str, ...]
    others: tuple[tuple[str, str], ...] = ()


@cache
def table() -> dict[str, Any]:
    """The file as it is: concepts, colours, grounds, and lists of words."""
    found: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return found


def concepts(names: Path) -> tuple[Concept, ...]:
    """All concepts, with their names in other languages from the archive of names."""
    labels = {language: _labels(names, language) for language in LANGUAGES}
    english = {entry["label"]: entry["hexcode"] for entry in read(names, "en/data.json")}
    made = []
    for each in table()["concepts"]:
        code = english[each["emoji"]]
        others = tuple((language, labels[language][code]) for language in LANGUAGES if code in labels[language])
        made.append(Concept(each["icon"], tuple(each["words"]), others))
    return tuple(made)


def unknown_names(names: Path) -> tuple[str, ...]:
    """English names of emoji that are not taught: words for tails that shall change nothing."""
    taught = {each["emoji"] for each in table()["concepts"]}
    said = {word for each in table()["concepts"] for name in each["words"] for word in name.split()}
    said |= set(table()["colours"]) | set(table()["grounds"])
    labels = (entry["label"].lower() for entry in read(names, "en/data.json") if entry["label"] not in taught)
    plain = re.compile(r"[a-z ]+")
    return tuple(label for label in labels if plain.fullmatch(label) and not said & set(label.split()))


def _labels(names: Path, language: str) -> dict[str, str]:
    found = {}
    for entry in read(names, f"{language}/data.json"):
        label = _ASIDE[language].sub("", entry["label"])
        found[entry["hexcode"]] = _GERMAN.get(label, label).lower()
    return found
