"""Weights are what their rows say: hashed once while they arrive, and again only when a file looks touched.

Per file of a checkpoint size, modification time and inode are noted, on this host, together with the digest that was
true then. A load compares them; where they differ, or nothing was noted, every byte is read again.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson

from streamapp.errors import AppError
from streamapp.models.digest import folder_files, identify
from streamapp.models.safe import parse_header

#: When a load reads every byte: after a change (and the first time), before every load, never.
Verify = Literal["changed", "always", "never"]


class DamagedWeights(AppError):
    """A file is not what was registered."""

    code = "damaged_weights"
    status = 500


class Named(Protocol):
    """What a registry row says of its weights."""

    @property
    def name(self) -> str:
        """Its local name."""

    @property
    def digest(self) -> str:
        """SHA-256 in hex; see :mod:`streamapp.models.digest`."""

    @property
    def size(self) -> int:
        """Bytes."""


def check_weights(row: Named, path: Path, notes: Path, mode: Verify = "changed") -> None:
    """Make sure that the weights at ``path`` are those of the row; ``notes`` is the folder of what was seen. Blocks.

    Raises:
        DamagedWeights: they are others; says what to do.
    """
    if mode == "never":
        return
    if path.is_file():
        if path.stat().st_size != row.size:
            raise _damaged(row, f"has {path.stat().st_size} bytes, {row.size} were registered")
        try:
            parse_header(path, path.name)
        except AppError as error:
            raise _damaged(row, error.message) from error
    if mode == "changed" and _noted(row, path, notes):
        return
    found = identify(path)
    if found.digest != row.digest:
        raise _damaged(row, f"has sha256 {found.digest[:10]}…, {row.digest[:10]}… was registered")
    note_weights(row, path, notes)


def note_weights(row: Named, path: Path, notes: Path) -> None:
    """Note that every byte was right just now. Blocks."""
    notes.mkdir(parents=True, exist_ok=True)
    place = _place(path, notes)
    new = place.with_name(f"{place.name}.new")
    new.write_bytes(orjson.dumps({"digest": row.digest, "files": _stamps(path)}))
    new.replace(place)


def note_use(path: Path, notes: Path) -> None:
    """Note that the weights are used on this host now; costs nothing where nothing is noted about them. Blocks."""
    with suppress(FileNotFoundError):
        os.utime(_place(path, notes))


def used_at(path: Path, notes: Path) -> int | None:
    """When they were last used, verified or fetched on this host, in ms; ``None`` when nobody noted it. Blocks."""
    try:
        return int(_place(path, notes).stat().st_mtime * 1000)
    except FileNotFoundError:
        return None


def _noted(row: Named, path: Path, notes: Path) -> bool:
    try:
        note: Any = orjson.loads(_place(path, notes).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return False
    return bool(note == {"digest": row.digest, "files": _stamps(path)})


def _stamps(path: Path) -> list[list[str | int]]:
    """Per file its name, size in bytes, modification time in ns and inode."""
    stamps: list[list[str | int]] = []
    for file in folder_files(path) if path.is_dir() else [path]:
        at = file.stat()
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        stamps.append([name, at.st_size, at.st_mtime_ns, at.st_ino])
    return stamps


def _place(path: Path, notes: Path) -> Path:
    return notes / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"


def _damaged(row: Named, what: str) -> DamagedWeights:
    return DamagedWeights(
        f"{row.name}: its file {what}: fetch it again with `streamapp models pull {row.name}` (or `loras pull`), "
        "or add it again",
        name=row.name,
    )
