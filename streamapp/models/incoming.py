"""A LoRA that somebody uploads: to a temporary file while it is hashed, checked, then in its place or gone."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from streamapp.db.rows import LoraRow
from streamapp.errors import AppError, Conflict, InvalidRequest, TooLarge
from streamapp.models.cache import EVICTED
from streamapp.models.catalogue import LOCAL, NAME, locate, models_root, notes_root
from streamapp.models.digest import autov3
from streamapp.models.families import family as known_family
from streamapp.models.kinds import describe
from streamapp.models.pull import slug
from streamapp.models.safe import PICKLED, check_lora, parse_header
from streamapp.models.verified import note_weights
from streamapp.settings import Settings

Room = Callable[[int], Awaitable[object]]
TEMPORARY = ".upload-"
#: What a killed process left is deleted after this long, seconds.
STALE = 24 * 3600.0
#: Headers of the largest LoRAs have a few hundred kilobytes; more than this is made to fill memory, bytes.
MAX_HEADER = 8 * 1024**2
#: How pickles, and the archives that PyTorch packs them in, begin.
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Loras(Protocol):
    """The part of the registry that an upload needs."""

    async def loras(self) -> list[LoraRow]:
        """Every LoRA."""

    async def lora(self, name: str, version: str | None = None) -> LoraRow | None:
        """One LoRA, by default its last added version."""

    async def add_lora(self, row: LoraRow) -> None:
        """Insert or replace by name and version."""


class Incoming:
    """One upload; use as ``async with``: whatever happens, no temporary file is left.

    ``filename`` is what the client calls the file: for messages and a name, never for a path.
    """

    def __init__(self, settings: Settings, filename: str | None) -> None:
        self._settings = settings
        base = re.split(r"[/\\]", filename or "")[-1]
        self.title = re.sub(r"[^\w .+-]", "_", base)[:100] or "the upload"
        self.stem = slug(base.rsplit(".", 1)[0]) if base else ""
        self.suffix = Path(base).suffix.lower()
        self.size = 0
        self._hash = hashlib.sha256()
        self._start = b""
        self._file: BinaryIO
        self.path: Path

    async def __aenter__(self) -> Self:
        if self.suffix in PICKLED:
            raise InvalidRequest(
                f"{self.title} is a pickled file, which can run code when it is opened: convert it to .safetensors",
                field="file",
            )
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._clean)

    def _open(self) -> None:
        folder = models_root(self._settings) / "loras"
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{TEMPORARY}*"):
            if time.time() - left.lstat().st_mtime > STALE:
                left.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=".safetensors", dir=folder)
        self._file, self.path = os.fdopen(handle, "wb"), Path(name)

    def _clean(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    async def write(self, chunk: bytes) -> None:
        """Append; refuses as early as the bytes tell.

        Raises:
            TooLarge: more than ``max_upload_bytes``.
            InvalidRequest: it begins as no safetensors file of a LoRA does.
        """
        self.size += len(chunk)
        if self.size > (limit := self._settings.max_upload_bytes):
            raise TooLarge(f"{self.title} is larger than {limit} bytes, the limit of an upload here", limit=limit)
        if len(self._start) < 8:
            self._start += chunk[:8]
            self._check_start()
        await asyncio.to_thread(self._append, chunk)

    def _append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)

    def _check_start(self) -> None:
        if self._start.startswith(PICKLE_STARTS):
            raise InvalidRequest(
                f"{self.title} is a pickled file, which can run code when it is opened: convert it to .safetensors",
                field="file",
            )
        if len(self._start) >= 8 and int.from_bytes(self._start[:8], "little") > MAX_HEADER:
            raise InvalidRequest(
                f"{self.title} is not a safetensors file of a LoRA: its header is too long", field="file"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of what was written."""
        return self._hash.hexdigest()

    async def register(
        self, registry: Loras, name: str | None, family: str | None, by: str, room: Room
    ) -> tuple[LoraRow, bool]:
        """Check, place and register what was written; the row, and whether it is new.

        ``room`` is asked for the bytes before the file is kept.

        Raises:
            InvalidRequest: no plain LoRA, not of this family, or a name that cannot be one.
            Conflict: the name is that of another LoRA.
            NoSpace: the disk budget is used up.
        """
        row = await asyncio.to_thread(self._row, name, family, by)
        known = [one for one in await registry.loras() if one.digest == row.digest]
        same = next((one for one in known if one.name == row.name or name is None), None)
        here = await asyncio.to_thread(self._first_here, known)
        if same is not None and same.path == getattr(here, "path", None):
            return same, False
        named = await registry.lora(row.name) if same is None else same
        if named is not None and named.digest != row.digest:
            raise Conflict(
                f"{row.name} is the name of another LoRA (sha256 {named.digest[:10]}…): choose another name",
                name=row.name,
            )
        if same is not None:  # its file was gone: the row is as it was, with this file
            row = replace(row, name=same.name, traits={**row.traits, **same.traits})
            row = replace(row, traits={name: value for name, value in row.traits.items() if name != EVICTED})
        if here is not None:
            row = replace(row, path=here.path)
        else:
            await room(self.size)
            await asyncio.to_thread(self._place, row)
        await registry.add_lora(row)
        return row, same is None

    def _row(self, name: str | None, family: str | None, by: str) -> LoraRow:
        """What the file says, as a row. Blocks."""
        self._file.flush()
        os.fsync(self._file.fileno())
        local = name or self.stem or f"lora-{self.digest[:10]}"
        if not NAME.match(local):
            raise InvalidRequest(
                f"name {local[:40]!r} must be letters, digits, blanks, dots, dashes or underscores, at most 100",
                field="name",
            )
        header = check_lora(self.path, self.title)
        told = describe(parse_header(self.path, self.title)).family
        if family is not None and told is not None and known_family(family).name != told:
            raise InvalidRequest(f"{self.title} fits models of family {told}, not {family}", field="family")
        if (fits := family or told) is None:
            raise InvalidRequest(f"the family of {self.title} cannot be told from its tensors: say it", field="family")
        if (fits := known_family(fits).name) not in self._settings.families:
            raise InvalidRequest(
                f"{self.title} fits models of family {fits}, which no worker here serves "
                f"(STREAMAPP_FAMILIES: {', '.join(self._settings.families)})",
                field="family",
            )
        traits = {
            "format": header.layout, "rank": header.rank, "trigger_words": list(header.trigger_words),
            "autov3": autov3(self.path), "uploaded_by": by,
        }  # fmt: skip
        path = f"loras/{slug(local)}-{self.digest[:10]}.safetensors"
        return LoraRow(
            name=local, version=self.digest[:10], family=fits, source=LOCAL, path=path, digest=self.digest,
            size=self.size, traits=traits,
        )  # fmt: skip

    def _first_here(self, known: list[LoraRow]) -> LoraRow | None:
        """One of the rows of this digest whose file is on this machine. Blocks."""
        for row in known:
            try:
                if not row.traits.get(EVICTED) and locate(row, self._settings).stat().st_size == row.size:
                    return row
            except (AppError, OSError):
                continue
        return None

    def _place(self, row: LoraRow) -> None:
        """Atomic; what has this name already has these bytes."""
        target = models_root(self._settings) / row.path
        self.path.chmod(0o644)
        self.path.replace(target)
        note_weights(row, target, notes_root(self._settings))
