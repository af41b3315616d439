"""What has arrived of a file: its bytes, the running digest, and what they belong to."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import orjson

from streamapp.models.locks import is_locked

#: Seconds after which a part that nobody goes on with is of no use.
STALE = 24 * 3600.0
BLOCK = 4 * 1024**2
RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)\Z")


def arriving_bytes(root: Path, known: Collection[Path]) -> int:
    """Bytes that unfinished files below ``root`` have, or will have, but for those of the targets ``known``.

    What nobody has written to for a day, and nobody is writing, is deleted: it only fills the disk. Blocks.
    """
    total = 0
    for part in root.rglob("*.part"):
        target = part.with_suffix("")
        if target in known:
            continue
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > STALE and not is_locked(target):
                part.unlink()
                part.with_name(f"{part.name}.json").unlink(missing_ok=True)
                continue
            total += max(part.stat().st_size, _announced(part))
    return total


def _announced(part: Path) -> int:
    """How long the file will be, as far as its note tells."""
    try:
        note = orjson.loads(part.with_name(f"{part.name}.json").read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return 0
    return int(note.get("total") or 0) if isinstance(note, dict) else 0


class Partial:
    """``TARGET.part`` with its note ``TARGET.part.json``; everything here blocks.

    A part without a note, or whose note names another file, is of no use and starts anew.
    """

    def __init__(self, target: Path, url: str, expected: str | None) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")
        # The address without its query, which holds tokens and signatures.
        self._key = {"url": url.partition("?")[0], "digest": expected}
        self._hash = hashlib.sha256()
        self.size = 0
        self.total: int | None = None
        self._etag: str | None = None

    @classmethod
    def open(cls, target: Path, url: str, expected: str | None) -> Self:
        """What an earlier try left of this very file, hashed again; else an empty part."""
        part = cls(target, url, expected)
        note = part._read_note()
        if note is None or {key: note.get(key) for key in part._key} != part._key:
            return part
        # Without a digest to check it against or a tag that tells one file from another nothing can be continued.
        if expected is None and not note.get("etag"):
            return part
        try:
            with part.path.open("rb") as file:
                while block := file.read(BLOCK):
                    part._hash.update(block)
                    part.size += len(block)
        except FileNotFoundError:
            return part
        part._etag, part.total = note.get("etag"), note.get("total")
        return part

    def _read_note(self) -> dict[str, Any] | None:
        try:
            note = orjson.loads(self._note.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        return note if isinstance(note, dict) else None

    def headers(self) -> dict[str, str]:
        """What to ask for: the rest, as long as it is the same file."""
        if not self.size:
            return {}
        asked = {"Range": f"bytes={self.size}-"}
        return {**asked, "If-Range": self._etag} if self._etag else asked

    def continues(self, content_range: str) -> bool:
        """Whether an answer's ``Content-Range`` begins where this part ends."""
        match = RANGE.match(content_range)
        return match is not None and int(match["start"]) == self.size

    def describe(self, etag: str | None, total: int | None) -> None:
        """Note what the bytes belong to, before the first of them is written."""
        # A weak tag says that two files mean the same, not that they are the same bytes.
        self._etag = None if etag is None or etag.startswith("W/") else etag
        self.total = total if total is not None else self.total
        whole = self._note.with_name(f"{self._note.name}.new")
        whole.write_bytes(orjson.dumps({**self._key, "etag": self._etag, "total": self.total}))
        whole.replace(self._note)

    def append(self, pieces: Sequence[bytes]) -> None:
        """Write and hash what came."""
        if not pieces:
            return
        with self.path.open("ab") as file:
            for piece in pieces:
                file.write(piece)
                self._hash.update(piece)
                self.size += len(piece)

    def reset(self) -> None:
        """Forget what came."""
        self.path.unlink(missing_ok=True)
        self._hash, self.size, self.total = hashlib.sha256(), 0, None

    def discard(self) -> None:
        """Remove part and note."""
        self.reset()
        self._note.unlink(missing_ok=True)

    def digest(self) -> str:
        """SHA-256 of what is here, in hex."""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Give the file its name; after this it survives a loss of power."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self._note.unlink(missing_ok=True)
        folder = os.open(self.target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
