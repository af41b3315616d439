"""Which registered weights a reference means: by name first, then by digest and by the page they came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.errors import InvalidRequest
from streamapp.models.cache import EVICTED, PULLED_FROM
from streamapp.models.reference import Civitai, Digest, Hub, Named, Reference, read_reference

R = TypeVar("R", ModelRow, LoraRow)
#: The page of a mirror reads as that of the site does.
_VERSION = re.compile(r"/models/(?P<model>\d+)\?modelVersionId=(?P<version>\d+)\Z")


def find(text: str, rows: Sequence[R]) -> R | None:
    """The row that ``text`` refers to by anything but its name, its path included; of several the last that is here.

    Raises:
        InvalidRequest: ``text`` is an address that cannot be read.
    """
    wanted = read_reference(text)
    if isinstance(wanted, Named):
        found = [row for row in rows if row.path == text]
    else:
        found = [row for row in rows if _is(row, wanted) or row.path == text]
    return max(found, key=lambda row: not row.traits.get(EVICTED), default=None)


def how_to_pull(text: str, kind: str) -> str:
    """A sentence for what is not registered, when it can be fetched."""
    try:
        named = isinstance(read_reference(text), Named)
    except InvalidRequest:
        named = True
    return "" if named else f"; its operator can fetch it: `streamapp {kind}s pull {text[:200]}`"


def _is(row: ModelRow | LoraRow, wanted: Reference) -> bool:
    match wanted:
        case Digest(hex=digits):
            return row.digest.startswith(digits)
        case Civitai():
            return any(_same_version(wanted, known) for known in _origins(row) if isinstance(known, Civitai))
        case Hub():
            return any(_same_file(wanted, known) for known in _origins(row) if isinstance(known, Hub))
    return False


def _origins(row: ModelRow | LoraRow) -> list[Reference]:
    """Where the row says that it came from."""
    origins: list[Reference] = []
    if match := _VERSION.search(str(row.traits.get("page", ""))):
        origins.append(Civitai(int(match["model"]), int(match["version"])))
    for trait in ("air", PULLED_FROM):
        try:
            origins.append(read_reference(str(row.traits.get(trait, ""))))
        except InvalidRequest:
            continue
    return origins


def _same_version(wanted: Civitai, known: Civitai) -> bool:
    """Whether everything that was asked for is known to be so."""
    return all(
        asked is None or asked == there
        for asked, there in (
            (wanted.model_id, known.model_id),
            (wanted.version_id, known.version_id),
            (wanted.file_id, known.file_id),
        )
    )


def _same_file(wanted: Hub, known: Hub) -> bool:
    return (
        wanted.repo == known.repo and wanted.file in (None, known.file) and wanted.revision in ("main", known.revision)
    )
