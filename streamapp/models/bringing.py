"""Weights that the registry names and this host lacks: from the fleet's copy, else from where they were fetched.

What comes is the very file of the row or nothing: its SHA-256 is checked while it arrives, and the row is not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.errors import NotFound
from streamapp.models.cache import PULLED_FROM, DiskCache
from streamapp.models.catalogue import notes_root, place_of
from streamapp.models.pull import Sites
from streamapp.models.shared import SharedWeights
from streamapp.models.verified import note_weights
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

log = get_logger(__name__)
Row = ModelRow | LoraRow


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

    async def __call__(self, row: Row) -> bool:
        """Have the weights of a row here; ``False``: nobody has them, or they are a folder, which is not shared.

        Raises:
            NotFound: where they were fetched from there is another file by now.
            AppError: see :meth:`SharedWeights.bring` and :meth:`Downloader.fetch`.
        """
        if not row.path.endswith(".safetensors") or not row.digest:
            return False
        task = self._running.get(row.path)
        if task is None:
            task = self._running[row.path] = asyncio.create_task(self._bring(row), name=f"bring {row.name}")
            task.add_done_callback(lambda done: self._ended(row.path, done))
        return await asyncio.shield(task)

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
