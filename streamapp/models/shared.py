"""Weights that one host has, for the whole fleet: objects by digest in the common storage.

The first host that fetches a file puts it there; the others take it from there, not from its publisher again, and so
does a worker whose registry names a file that was fetched or uploaded on another host. One host at a time works on a
digest: the others wait for it, and for a host that died no longer than its lease.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from streamapp.errors import Unavailable
from streamapp.models.download import CHUNK, Fetched, WrongDigest
from streamapp.models.locks import locked
from streamapp.models.partial import Partial
from streamapp.models.safe import parse_header
from streamapp.settings import Settings
from streamapp.storage import Storage, open_storage
from streamapp.telemetry import get_logger

log = get_logger(__name__)
#: Seconds after which a host that holds a digest and says nothing is taken to be dead, and between its words.
LEASE, RENEWAL, POLL = 30.0, 8.0, 1.0


class Leases(Protocol):
    """Rights that one holder at a time has; :class:`streamapp.db.Delivery` has them in the database."""

    async def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take or renew a right."""

    async def release(self, name: str, holder: str) -> None:
        """Give it up."""


class Weights(Protocol):
    """What a registry row says of its file."""

    @property
    def digest(self) -> str:
        """SHA-256 in hex."""

    @property
    def size(self) -> int:
        """Bytes."""


@asynccontextmanager
async def open_shared(settings: Settings, leases: Leases) -> AsyncIterator[SharedWeights | None]:
    """The fleet's copies for a command; ``None`` where hosts have no storage in common."""
    if not settings.common_storage:
        yield None
        return
    storage = open_storage(settings)
    await storage.start()
    try:
        yield SharedWeights(storage, leases)
    finally:
        await storage.close()


def weights_key(digest: str) -> str:
    """Where the storage keeps the file with this SHA-256."""
    return f"weights/{digest[:2]}/{digest}.safetensors"


class SharedWeights:
    """The fleet's copies. Every method may raise ``Unavailable``, but for :meth:`give`, which only logs it."""

    def __init__(self, storage: Storage, leases: Leases) -> None:
        self._storage, self._leases = storage, leases
        self._holder = secrets.token_hex(8)

    @asynccontextmanager
    async def turn(self, digest: str) -> AsyncIterator[None]:
        """Be the only host of the fleet that works on this digest; waits until it is."""
        name = f"weights-{digest[:40]}"
        holder = f"{self._holder}-{secrets.token_hex(4)}"
        while not await self._leases.lease(name, holder, LEASE):  # noqa: ASYNC110 - another host holds it
            await asyncio.sleep(POLL)
        renewing = asyncio.create_task(self._renew(name, holder), name=f"renew {name}")
        try:
            yield
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
            with suppress(Unavailable):  # it ends by itself
                await self._leases.release(name, holder)

    async def _renew(self, name: str, holder: str) -> None:
        """A lease that was lost costs at worst a second download of the same bytes."""
        while True:
            await asyncio.sleep(RENEWAL)
            with suppress(Unavailable):
                await self._leases.lease(name, holder, LEASE)

    async def take(
        self, digest: str, target: Path, progress: Callable[[int, int | None], None] = lambda *_: None
    ) -> Fetched | None:
        """Bring the fleet's copy to ``target``, resumed and verified like any download; ``None``: there is none.

        Raises:
            WrongDigest: the copy is damaged; it was removed, so that the next fetch asks the publisher.
        """
        key, began = weights_key(digest), time.monotonic()
        info = await self._storage.head(key)
        if info is None:
            return None
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        async with locked(target):
            part = await asyncio.to_thread(Partial.open, target, f"shared:{key}", digest)
            resumed = part.size
            if not resumed:
                await asyncio.to_thread(part.reset)
            await asyncio.to_thread(part.describe, info.etag, info.size)
            await self._receive(key, part, progress)
            if part.digest() != digest:
                await asyncio.to_thread(part.discard)
                await self._storage.delete(key)
                raise WrongDigest(f"the fleet's copy of {digest[:10]}… is damaged and was removed: fetch it again")
            await asyncio.to_thread(parse_header, part.path, target.name)
            await asyncio.to_thread(part.finish)
        seconds = time.monotonic() - began
        log.info("weights taken from the fleet's copy", action="shared_taken", digest=digest[:10], bytes=part.size)
        return Fetched(target, digest, part.size, seconds, resumed)

    async def has(self, row: Weights) -> bool:
        """Whether the fleet has a copy; a storage that does not answer has none for now."""
        try:
            return bool(row.digest) and await self._storage.head(weights_key(row.digest)) is not None
        except Unavailable:
            return False

    async def bring(self, row: Weights, target: Path, room: Callable[[int], Awaitable[object]]) -> bool:
        """Have the weights of a row here too, ``room`` made for their bytes; ``False``: the fleet has no copy."""
        async with self.turn(row.digest):
            if await asyncio.to_thread(target.exists):
                return True
            if await self._storage.head(weights_key(row.digest)) is None:
                return False
            await room(row.size)
            return await self.take(row.digest, target) is not None

    async def _receive(self, key: str, part: Partial, progress: Callable[[int, int | None], None]) -> None:
        pieces: list[bytes] = []
        held = 0
        try:
            async for piece in self._storage.read(key, part.size):
                pieces.append(piece)
                held += len(piece)
                if held >= CHUNK:
                    await asyncio.to_thread(part.append, pieces)
                    pieces, held = [], 0
                    progress(part.size, part.total)
        finally:
            # What came before a failure is not asked for again.
            await asyncio.to_thread(part.append, pieces)
            progress(part.size, part.total)

    async def give(self, path: Path, digest: str) -> None:
        """Put a file where the fleet finds it; a storage that is away costs the others a download, nothing more."""
        key = weights_key(digest)
        try:
            if await self._storage.head(key) is None:
                await self._storage.put(key, path, "application/octet-stream")
                log.info("weights put where the fleet finds them", action="shared_given", digest=digest[:10])
        except Unavailable as error:
            log.warning(error.message, action="share_failed", digest=digest[:10])
