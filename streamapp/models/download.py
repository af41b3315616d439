"""Fetches one large file: resumable across restarts, verified while it arrives, whole or not there at all.

What arrived lies in ``TARGET.part`` and what it belongs to in ``TARGET.part.json``; a later try, also of another
process, asks for the rest (``Range`` with ``If-Range``, RFC 9110 sections 13.1.5 and 14). The file gets its name only
after the publisher's SHA-256, the length and the safetensors header were right.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from streamapp.errors import AppError
from streamapp.guarded import FetchFailed, GuardedClient
from streamapp.models.answers import check_answer, pause_asked, total_size
from streamapp.models.digest import identify
from streamapp.models.locks import locked
from streamapp.models.partial import Partial
from streamapp.models.safe import parse_header

CHUNK = 4 * 1024**2
#: Kept free on the disk besides the file, bytes: databases and pictures live there too.
SPARE = 256 * 1024**2
#: A connection that brings less than this in :data:`PATIENCE` seconds is cut and tried again, bytes.
DRIP = 64 * 1024
PATIENCE = 30.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class NoSpace(AppError):
    """The disk cannot hold the file."""

    code = "no_space"
    status = 507


class WrongDigest(AppError):
    """What arrived is not what its publisher describes."""

    code = "wrong_digest"
    status = 502


@dataclass(frozen=True, slots=True)
class Remote:
    """A file elsewhere, as its publisher describes it.

    Attributes:
        url: its address; redirects are followed, credentials stay with the first host.
        name: what people call it; for messages, never a path.
        digest: SHA-256 in hex, lower case, where the publisher tells it.
        size: bytes, where the publisher tells them exactly.
        headers: a token, say; never logged.
        weights: whether it must be a safetensors file; what is none is verified by its digest alone.
    """

    url: str
    name: str
    digest: str | None = None
    size: int | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    weights: bool = True


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is here: SHA-256 in hex, bytes, seconds it took, and how many bytes an earlier try had left."""

    path: Path
    digest: str
    size: int
    seconds: float
    resumed: int


@dataclass(frozen=True, slots=True)
class Downloader:
    """Fetches files; one at a time for each target on this machine, a few at a time from each host.

    Attributes:
        client: reaches what the operator allows.
        per_host: exchanges with one host at a time.
        attempts: tries in a row that bring nothing new before giving up.
        max_bytes: longest file that is fetched.
    """

    client: GuardedClient
    per_host: int = 2
    attempts: int = 6
    max_bytes: int = 128 * 1024**3
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _hosts: dict[str, asyncio.Semaphore] = field(default_factory=dict, repr=False)

    async def fetch(
        self, remote: Remote, target: Path, progress: Callable[[int, int | None], None] = lambda *_: None
    ) -> Fetched:
        """Bring ``remote`` to ``target``; ``progress`` hears bytes here and bytes in all (``None``: not known yet).

        A target that is there already is taken when it still has the digest that the publisher tells.

        Raises:
            AppError: by code; ``retryable`` says whether asking again later may help.
        """
        began = time.monotonic()
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        async with locked(target):
            if await asyncio.to_thread(target.exists):
                here = await asyncio.to_thread(identify, target)
                if remote.digest in (None, here.digest):
                    return Fetched(target, here.digest, here.size, time.monotonic() - began, 0)
                # Its bytes have changed since: what comes now takes its place.
            part = await asyncio.to_thread(Partial.open, target, remote.url, remote.digest)
            resumed = part.size
            async with self._host(remote.url):
                await self._until_right(remote, part, progress)
            await asyncio.to_thread(part.finish)
            return Fetched(target, part.digest(), part.size, time.monotonic() - began, resumed)

    async def _until_right(self, remote: Remote, part: Partial, progress: Callable[[int, int | None], None]) -> None:
        """Fetch and verify; what an earlier try left may be what is wrong, so then once more from the beginning."""
        resumed = part.size > 0
        await self._until_whole(remote, part, progress)
        try:
            await self._verify(remote, part)
        except AppError:
            await asyncio.to_thread(part.discard)
            if not resumed:
                raise
            await self._until_right(remote, part, progress)

    def _host(self, url: str) -> asyncio.Semaphore:
        host = self.client.check(url).host or ""
        return self._hosts.setdefault(host, asyncio.Semaphore(self.per_host))

    async def _until_whole(self, remote: Remote, part: Partial, progress: Callable[[int, int | None], None]) -> None:
        """Try until the file is whole, or nothing new came in a row of tries."""
        barren = 0
        while True:
            before = part.size
            try:
                await self._once(remote, part, progress)
                return
            except FetchFailed as error:
                barren = 0 if part.size > before else barren + 1
                if barren >= self.attempts:
                    raise FetchFailed(
                        f"{remote.name}: {barren} tries in a row brought nothing new; the last: {error.message}"
                    ) from error
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, barren - 1)) * random.uniform(0.5, 1.0)
                await self.sleep(max(pause, float(error.details.get("retry_after", 0))))

    async def _once(self, remote: Remote, part: Partial, progress: Callable[[int, int | None], None]) -> None:
        """One exchange: ask for what is missing and keep whatever comes."""
        asked = part.headers()
        async with self.client.stream(remote.url, headers={**remote.headers, **asked}) as answer:
            if answer.status == 416 and part.size:
                # Nothing behind what is here: it was whole, or it belongs to another file; the digest tells.
                if part.total is None or part.size != part.total:
                    await asyncio.to_thread(part.reset)
                    raise FetchFailed(f"{remote.name}: what an earlier try left does not fit, starting anew")
                return
            if (pause := pause_asked(answer)) is not None:
                raise FetchFailed(f"{remote.name}: {answer.status} from {answer.url.host}", retry_after=pause)
            await check_answer(remote.name, answer)
            total = total_size(answer)
            if answer.status != 206 or not part.continues(answer.headers.get("Content-Range", "")):
                await asyncio.to_thread(part.reset)
            self._check_size(remote, part, total)
            await asyncio.to_thread(part.describe, answer.headers.get("ETag"), total)
            await self._receive(remote, part, answer, progress)
        if part.total is not None and part.size != part.total:
            raise FetchFailed(f"{remote.name}: {part.size} of {part.total} bytes came")

    def _check_size(self, remote: Remote, part: Partial, total: int | None) -> None:
        if remote.size is not None and total is not None and total != remote.size:
            raise WrongDigest(f"{remote.name}: {total} bytes are offered, its publisher says {remote.size}")
        wanted = total or remote.size or 0
        if wanted > self.max_bytes:
            raise NoSpace(f"{remote.name}: {wanted} bytes are more than the limit of {self.max_bytes}")
        free = shutil.disk_usage(part.path.parent).free
        if wanted - part.size + SPARE > free:
            raise NoSpace(
                f"{remote.name} needs {(wanted - part.size) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
                "remove models with `streamapp models remove`, or give the data folder more room"
            )

    async def _receive(
        self, remote: Remote, part: Partial, answer: aiohttp.ClientResponse, progress: Callable[[int, int | None], None]
    ) -> None:
        """Write and hash in a thread while the next piece arrives."""
        writing: asyncio.Future[None] | None = None
        mark, since = part.size, time.monotonic()
        pieces: list[bytes] = []
        held = 0
        try:
            async for piece in answer.content.iter_any():
                pieces.append(piece)
                held += len(piece)
                here, now = part.size + held, time.monotonic()
                if now - since > PATIENCE:
                    if here - mark < DRIP:
                        raise FetchFailed(f"{remote.name}: {answer.url.host} sends next to nothing")
                    mark, since = here, now
                if here > (part.total if part.total is not None else self.max_bytes):
                    raise WrongDigest(f"{remote.name}: more bytes came than were announced")
                if held >= CHUNK:
                    if writing is not None:
                        await writing
                        progress(part.size, part.total)
                    writing = asyncio.ensure_future(asyncio.to_thread(part.append, pieces))
                    pieces, held = [], 0
        finally:
            # Also what came before a failure counts: the next try asks for the rest only.
            if writing is not None:
                await writing
            await asyncio.to_thread(part.append, pieces)
            progress(part.size, part.total)

    async def _verify(self, remote: Remote, part: Partial) -> None:
        if remote.digest is not None and part.digest() != remote.digest:
            raise WrongDigest(
                f"{remote.name} has SHA-256 {part.digest()[:10]}…, its publisher says {remote.digest[:10]}…: "
                "it was damaged on the way or replaced"
            )
        if remote.weights or remote.digest is None:
            await asyncio.to_thread(parse_header, part.path, remote.name)
