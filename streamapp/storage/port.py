"""What every storage can do. The contract suite in ``tests/storage`` holds for each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Bytes read at a time.
CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Size in bytes, content type, an entity tag with its quotes, and when it was written (ms since 1970)."""

    size: int
    content_type: str
    etag: str
    modified_ms: int


class Storage(Protocol):
    """Objects by key. Every call may raise ``Unavailable``; every key is checked (``InvalidRequest``)."""

    async def start(self) -> None:
        """Open what it needs; cheap, and no proof that it works: that is :meth:`ping`."""

    async def close(self) -> None:
        """Release it; a second call does nothing."""

    async def ping(self) -> None:
        """Ask whether objects can be kept right now; raises ``Unavailable`` with a sentence when not."""

    async def put(self, key: str, data: bytes | Path, content_type: str) -> None:
        """Keep ``data``, or the contents of a file, under ``key``: all of it or nothing; the last one wins."""

    async def head(self, key: str) -> ObjectInfo | None:
        """What is known about an object, ``None`` when there is none."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from ``start`` up to, not including, ``end``; nothing when ``start`` lies behind the last one.

        Raises:
            NotFound: at the first step, when there is no such object.
        """

    async def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""

    async def url(self, key: str, *, expires_s: int = 3600, filename: str | None = None) -> str:
        """An address that lets its bearer read the object for ``expires_s`` seconds, as a download when named.

        Says nothing about whether the object exists.
        """
