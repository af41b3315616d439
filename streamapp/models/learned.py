"""Learned words (textual inversion) as weights of a registry: a row of the LoRAs' table with a mark.

A prompt names one by its registered name. What is drawn with is settled at submit: the worker puts a token in the
word's place that only this very file answers to, so that a task means the same whatever is registered later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.engine.embeddings import ONE, TWO, pattern
from streamapp.errors import InvalidRequest
from streamapp.models.families import family
from streamapp.models.safe import read_header

#: The trait that says so, and its value.
KIND, EMBEDDING = "kind", "embedding"
#: Windows of a prompt hold as many vectors.
LONGEST = 75


def is_embedding(row: ModelRow | LoraRow) -> bool:
    """Whether a row is a learned word."""
    return isinstance(row, LoraRow) and row.traits.get(KIND) == EMBEDDING


def named(rows: Iterable[LoraRow], *texts: str) -> list[LoraRow]:
    """The learned words among these rows that the texts name, each once, by name."""
    known = {row.name.lower(): row for row in rows if is_embedding(row)}
    found = pattern([row.name for row in known.values()])
    names = {match.group().lower() for text in texts for match in found.finditer(text)} if found else set()
    return sorted((known[name] for name in names), key=lambda row: row.name)


def token(row: LoraRow) -> str:
    """What the engine calls it: no word of anybody's, and another one for another file."""
    return f"<learned-{row.digest[:16]}>"


def with_tokens(text: str, rows: Sequence[LoraRow]) -> str:
    """A prompt with the tokens of these words in their places."""
    known = {row.name.lower(): row for row in rows}
    found = pattern([row.name for row in rows])
    return text if found is None else found.sub(lambda match: token(known[match.group().lower()]), text)


def check_embedding(path: Path, family_name: str) -> dict[str, Any]:
    """Refuse anything but a well-formed textual inversion for a family; its traits.

    Raises:
        InvalidRequest: for other files, one for another family's encoders, or more vectors than a prompt's window has.
        NotFound: when there is no such file.
    """
    kind = family(family_name)
    if not kind.encoders:
        raise InvalidRequest(f"models of family {kind.name} take no learned words yet", field="family")
    shapes = {key: tuple(entry["shape"]) for key, entry in read_header(path).items() if key != "__metadata__"}
    keys = TWO if kind.encoders == len(TWO) else (ONE,) if ONE in shapes else tuple(shapes)
    if len(keys) != kind.encoders or not set(keys) <= shapes.keys():
        wanted = " and ".join(TWO) if kind.encoders == len(TWO) else f"{ONE} or its token alone"
        raise InvalidRequest(f"{path.name} is no learned word for {kind.name}, whose files hold {wanted}", field="path")
    tables = [shapes[key] if len(shapes[key]) != 1 else (1, *shapes[key]) for key in keys]
    if any(len(table) != 2 for table in tables) or len({table[0] for table in tables}) != 1:
        raise InvalidRequest(f"{path.name} holds no table of vectors for each encoder", field="path")
    vectors = tables[0][0]
    if not 1 <= vectors <= LONGEST:
        raise InvalidRequest(f"{path.name} has {vectors} vectors: 1 to {LONGEST} fit into a prompt", field="path")
    return {KIND: EMBEDDING, "vectors": vectors, "widths": [table[1] for table in tables]}
