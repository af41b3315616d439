"""Fetches that this process runs for the people who asked over HTTP: a few at a time, each with its progress."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.errors import AppError, InvalidRequest, NotFound, Overloaded
from streamapp.models.bringing import Bringing
from streamapp.models.cache import EVICTED, PINNED, PULLED_FROM, DiskCache, Rows, kind_of, mark, marked, save
from streamapp.models.catalogue import check_name, locate, models_root, notes_root, place_of
from streamapp.models.digest import identify
from streamapp.models.download import Fetched
from streamapp.models.hub_cache import from_hub_cache
from streamapp.models.offer import Offer
from streamapp.models.pull import Progress, Sites, open_sites, pull, target_of
from streamapp.models.reference import Named, read_reference
from streamapp.models.shared import SharedWeights
from streamapp.models.verified import note_weights
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

log = get_logger(__name__)
#: Fetches at a time, and fetches that may wait for their turn.
RUNNING, WAITING = 2, 100
#: Ended fetches that can still be asked for.
REMEMBERED = 200
State = Literal["waiting", "fetching", "done", "failed"]


class Registered(Rows, Protocol):
    """The part of the registry that a fetch needs."""

    async def model(self, name: str, version: str | None = None) -> ModelRow | None:
        """One checkpoint, by default its last added version."""

    async def lora(self, name: str, version: str | None = None) -> LoraRow | None:
        """One LoRA, by default its last added version."""


@dataclass(slots=True)
class Fetch:
    """One fetch: ``bytes`` of ``total`` (``None``: not known yet) are here; ``error`` as an :class:`AppError` says it.

    ``digest`` is the SHA-256 that must come, where only that file will do.
    Times are milliseconds of this host's clock.
    """

    id: str
    reference: str
    name: str | None
    state: State = "waiting"
    bytes: int = 0
    total: int | None = None
    error: dict[str, Any] | None = None
    row: ModelRow | LoraRow | None = None
    started_at: int = 0
    ended_at: int | None = None
    digest: str | None = None
    heard: Progress = field(default=lambda *_: None, repr=False)

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.ended_at is not None

    def seen(self, here: int, total: int | None) -> None:
        """Note progress."""
        self.state, self.bytes, self.total = "fetching", here, total
        self.heard(here, total)


class Fetches:
    """Runs fetches; the same reference and name asked twice, while one runs, is one fetch."""

    def __init__(
        self,
        settings: Settings,
        registry: Registered,
        cache: DiskCache,
        changed: Callable[[], None] = lambda: None,
        shared: SharedWeights | None = None,
    ) -> None:
        self._settings, self._registry, self._cache, self._changed = settings, registry, cache, changed
        self._shared = shared
        self._all: dict[str, Fetch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(RUNNING)
        self._digests: dict[str, asyncio.Lock] = {}
        self._stack = AsyncExitStack()
        self._sites: Sites | None = None
        self._opening = asyncio.Lock()
        #: What a worker lacks, without any word to the registry.
        self.bring = Bringing(settings, cache, shared, self.sites)

    def all(self) -> list[Fetch]:
        """Every fetch that is remembered, the newest first."""
        return list(reversed(self._all.values()))

    def get(self, fetch_id: str) -> Fetch | None:
        """One fetch."""
        return self._all.get(fetch_id)

    async def start(self, text: str, name: str | None = None, digest: str | None = None) -> Fetch:
        """Begin to fetch what ``text`` refers to, or join the fetch that does; a registered name is fetched again.

        ``digest``: what comes must have this SHA-256.

        Raises:
            InvalidRequest: it refers to nothing that can be fetched.
            Overloaded: too many wait.
        """
        text, name = await self._source(text.strip(), name)
        wanted = (repr(read_reference(text)), name, digest)
        for one in self._all.values():
            if not one.ended and (repr(read_reference(one.reference)), one.name, one.digest) == wanted:
                return one
        if len(self._tasks) >= RUNNING + WAITING:
            raise Overloaded(f"{WAITING} fetches are waiting here: come again later", retry_after=60)
        fetch = Fetch(secrets.token_hex(8), text, name, started_at=_now(), digest=digest)
        self._all[fetch.id] = fetch
        for old in [one.id for one in self._all.values() if one.ended][: max(0, len(self._all) - REMEMBERED)]:
            del self._all[old]
        task = asyncio.create_task(self._run(fetch), name=f"fetch-{fetch.id}")
        self._tasks[fetch.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(fetch.id, None))
        return fetch

    async def once(
        self, text: str, name: str | None = None, progress: Progress = lambda *_: None
    ) -> ModelRow | LoraRow:
        """Fetch, register and wait for it: what a command does.

        Raises:
            AppError: see :func:`streamapp.models.pull.pull` and :meth:`DiskCache.reserve`.
        """
        text, name = await self._source(text.strip(), name)
        fetch = Fetch(secrets.token_hex(8), text, name, heard=progress)
        try:
            return await self._fetch(fetch)
        finally:
            self._cache.release(fetch.id)

    async def close(self) -> None:
        """Stop what runs: what arrived stays, and a later fetch goes on from there."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.bring.close()
        await self._stack.aclose()

    async def _source(self, text: str, name: str | None) -> tuple[str, str | None]:
        """What to fetch: of a registered name, what it was pulled from."""
        row = await self._registry.model(text) or await self._registry.lora(text)
        if row is None:
            if isinstance(read_reference(text), Named):
                raise InvalidRequest(
                    f"{text[:60]!r} is no reference to a model: write civitai:MODEL@VERSION, an address of Civitai or "
                    "the Hub, OWNER/NAME, an AIR or a SHA-256",
                    field="reference",
                )
            return text, name
        source = row.traits.get(PULLED_FROM)
        if not source:
            raise InvalidRequest(f"{row.name} is registered, and was not fetched from anywhere", field="reference")
        return str(source), name or row.name

    async def _run(self, fetch: Fetch) -> None:
        try:
            async with self._turn:
                fetch.row = await self._fetch(fetch)
            fetch.state, fetch.bytes, fetch.total = "done", fetch.row.size, fetch.row.size
            log.info("weights fetched", action="fetched", name=fetch.row.name, bytes=fetch.row.size)
        except AppError as error:
            fetch.state, fetch.error = "failed", error.as_dict()
            log.warning(error.message, action="fetch_failed", reference=fetch.reference)
        except asyncio.CancelledError:
            fetch.state, fetch.error = "failed", {"code": "stopped", "message": "this process stops", "retryable": True}
            raise
        except Exception as error:  # supervised: whoever waits for it must hear that it ended
            log.exception("a fetch failed", action="fetch_failed", reference=fetch.reference)
            message = f"a defect of the service: {type(error).__name__}; its log has the details"
            fetch.state, fetch.error = "failed", {"code": "internal_error", "message": message, "retryable": False}
        finally:
            fetch.ended_at = _now()
            self._cache.release(fetch.id)

    async def _fetch(self, fetch: Fetch) -> ModelRow | LoraRow:
        fetch.state = "fetching"
        async with AsyncExitStack() as held:

            async def prepare(offer: Offer) -> Fetched | None:
                _check_same(fetch, offer.file.digest)
                if offer.file.digest is not None:
                    # One download for one digest, whatever it is called; the next one finds the file.
                    await held.enter_async_context(self._digests.setdefault(offer.file.digest, asyncio.Lock()))
                    if (here := await self._here(offer.file.digest)) is not None:
                        return here
                size = offer.file.size or offer.about or 0
                fetch.total = size or None
                target = target_of(self._settings, offer)
                await self._cache.reserve(fetch.id, size, target=target)
                if offer.file.digest is None:
                    return None
                if (here := await from_hub_cache(offer.file.digest, target)) is not None or self._shared is None:
                    return here
                await held.enter_async_context(self._shared.turn(offer.file.digest))
                return await self._shared.take(offer.file.digest, target, fetch.seen)

            row = await pull(
                await self.sites(),
                self._settings,
                fetch.reference,
                name=fetch.name,
                progress=fetch.seen,
                prepare=prepare,
            )
            try:
                _check_same(fetch, row.digest)
            except NotFound:
                await asyncio.to_thread(place_of(row, self._settings).unlink, missing_ok=True)
                raise
            row = await self._register(row)
            path = place_of(row, self._settings)
            await asyncio.to_thread(note_weights, row, path, notes_root(self._settings))
            if self._shared is not None:
                # While it is this host's turn: whoever waits for it finds the copy.
                await self._shared.give(path, row.digest)
            return row

    async def _register(self, row: ModelRow | LoraRow) -> ModelRow | LoraRow:
        """Write the row; what an operator pinned stays pinned, and other names of the same file have it again, too."""
        if isinstance(row, LoraRow):
            check_name(row, await self._registry.lora(row.name))
        same = [one for one in await self._rows() if one.digest == row.digest]
        if any(
            (kind_of(one), one.name, bool(one.traits.get(PINNED))) == (kind_of(row), row.name, True) for one in same
        ):
            row = marked(row, PINNED, value=True)
        await save(self._registry, row)
        for one in same:
            if one.path == row.path and one.traits.get(EVICTED) and (one.name, one.version) != (row.name, row.version):
                await mark(self._registry, one, EVICTED, value=False)
        self._changed()
        return row

    async def _here(self, digest: str) -> Fetched | None:
        """The file of this digest, when a row says that it is here and every byte is as it was."""
        for row in await self._rows():
            if row.digest != digest or row.traits.get(EVICTED):
                continue
            try:
                path = await asyncio.to_thread(locate, row, self._settings)
            except AppError:
                continue
            if path.is_file() and path.is_relative_to(models_root(self._settings)):
                found = await asyncio.to_thread(identify, path)
                if found.digest == digest:
                    return Fetched(path, digest, found.size, 0.0, 0)
        return None

    async def _rows(self) -> list[ModelRow | LoraRow]:
        return [*await self._registry.models(), *await self._registry.loras()]

    async def sites(self) -> Sites:
        """The sites of the settings, open until :meth:`close`."""
        async with self._opening:
            if self._sites is None:
                self._sites = await self._stack.enter_async_context(open_sites(self._settings))
            return self._sites


def _check_same(fetch: Fetch, digest: str | None) -> None:
    """Refuse another file than the one that has to come.

    Raises:
        NotFound: its publisher has replaced it.
    """
    if None not in (fetch.digest, digest) and fetch.digest != digest:
        raise NotFound(f"{fetch.name} was {fetch.reference}, where another file is by now", name=fetch.name)


def _now() -> int:
    return time.time_ns() // 1_000_000
