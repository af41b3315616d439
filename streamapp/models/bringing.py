"""Weights that the registry names and this host lacks: from the fleet's copy, else from where they were fetched.

What comes is the very file of the row or nothing: its SHA-256 is checked while it arrives, and the row is not touched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.errors import AppError, NotFound
from streamapp.models.cache import PULLED_FROM, DiskCache
from streamapp.models.catalogue import LOCAL, notes_root, place_of
from streamapp.models.digest import identify
from streamapp.models.locks import locked
from streamapp.models.pull import Sites
from streamapp.models.shared import SharedWeights
from streamapp.models.verified import note_weights
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

log = get_logger(__name__)
Row = ModelRow | LoraRow
#: Seconds for which a file that was damaged again, or did not come again, is not fetched once more.
REST = 3600.0
#: Added to the name of a damaged file until the right one is here.
DAMAGED = ".damaged"


class Bringing:
    """One transfer for each file, however many ask for it; who stops waiting does not stop it."""

    def __init__(
        self,
        settings: Settings,
        cache: DiskCache,
        shared: SharedWeights | None,
        sites: Callable[[], Awaitable[Sites]],
    ) -> None:
        self._settings, self._cache, self._shared, self._sites = settings, cache, shared, sites
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._mended: dict[str, float] = {}

    async def __call__(self, row: Row) -> bool:
        """Have the weights of a row here; ``False``: nobody has them, or they are a folder, which is not shared.

        Raises:
            NotFound: where they were fetched from there is another file by now.
            AppError: see :meth:`SharedWeights.bring` and :meth:`Downloader.fetch`.
        """
        if not row.path.endswith(".safetensors") or not row.digest:
            return False
        task = self._running.get(row.path) or self._start(row, self._bring(row))
        return await asyncio.shield(task)

    async def again(self, row: Row) -> bool:
        """Begin to have a damaged file brought anew; ``False``: nobody else has it, or that was done a while ago.

        Until the right file is here, nothing is at its place; :meth:`__call__` waits for it. What cannot be had puts
        the damaged file back, for whoever looks into it.
        """
        if row.path in self._running:
            return True
        if row.source != LOCAL or not row.path.endswith(".safetensors") or not row.digest:
            return False
        now = time.monotonic()
        self._mended = {path: at for path, at in self._mended.items() if now - at < REST}
        if row.path in self._mended:
            return False
        if not row.traits.get(PULLED_FROM) and not (self._shared is not None and await self._shared.has(row)):
            return False
        if row.path not in self._running:
            self._mended[row.path] = now
            self._start(row, self._bring_again(row))
        return True

    async def mended(self, row: Row) -> bool:
        """Have a damaged file brought anew and wait for it; ``False``: see :meth:`again`.

        Raises:
            AppError: see :meth:`__call__`.
        """
        return await self.again(row) and await self(row)

    def _start(self, row: Row, bring: Coroutine[None, None, bool]) -> asyncio.Task[bool]:
        task = self._running[row.path] = asyncio.create_task(bring, name=f"bring {row.name}")
        task.add_done_callback(lambda done: self._ended(row.path, done))
        return task

    async def close(self) -> None:
        """Stop what runs: what arrived stays, and the next one goes on from there."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, path: str, task: asyncio.Task[bool]) -> None:
        self._running.pop(path, None)
        if not task.cancelled():
            task.exception()  # whoever waited has heard it

    async def _bring_again(self, row: Row) -> bool:
        """Set the damaged file aside, bring the right one, and delete the other then."""
        path = place_of(row, self._settings)
        async with locked(path):
            # Another process of this host may have been faster.
            if await asyncio.to_thread(_right, path, row):
                await asyncio.to_thread(note_weights, row, path, notes_root(self._settings))
                return True
            if await asyncio.to_thread(path.exists):
                await asyncio.to_thread(path.replace, _aside(path))
        log.warning("damaged weights are fetched again", action="damaged", name=row.name, digest=row.digest[:10])
        try:
            return await self._bring(row)
        except AppError as error:
            log.warning(error.message, action="not_mended", name=row.name, code=error.code)
            raise

    async def _bring(self, row: Row) -> bool:
        path = place_of(row, self._settings)
        room = partial(self._cache.reserve, row.digest, target=path)
        try:
            if self._shared is not None and await self._shared.bring(row, path, room):
                await asyncio.to_thread(note_weights, row, path, notes_root(self._settings))
                return True
            source = row.traits.get(PULLED_FROM)
            if not source:
                return False
            await self._fetch(row, str(source))
        finally:
            self._cache.release(row.digest)
            await asyncio.to_thread(_settle, _aside(path), path)
        log.info("weights brought to this host", action="brought", name=row.name, source=source)
        return True

    async def _fetch(self, row: Row, source: str) -> None:
        """From the publisher, as whoever registered the row did."""
        path = place_of(row, self._settings)
        sites = await self._sites()
        remote = (await sites.offer(source)).file
        if remote.digest not in (None, row.digest):
            raise NotFound(f"{row.name} was fetched from {source}, where another file is by now", name=row.name)
        await self._cache.reserve(row.digest, row.size, target=path)
        await sites.downloader.fetch(replace(remote, digest=row.digest), path)
        await asyncio.to_thread(note_weights, row, path, notes_root(self._settings))
        if self._shared is not None:
            await self._shared.give(path, row.digest)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}{DAMAGED}")


def _right(path: Path, row: Row) -> bool:
    """Whether every byte is as the row says. Blocks."""
    return path.is_file() and identify(path).digest == row.digest


def _settle(aside: Path, path: Path) -> None:
    """The damaged file goes, or comes back where nothing took its place. Blocks."""
    if path.exists():
        aside.unlink(missing_ok=True)
    elif aside.exists():
        aside.replace(path)
