"""Before a worker says that it is ready: what must be on its disk is fetched, what will be asked for first is loaded.

It happens beside everything else: the process serves and accepts from its first moment on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from streamapp.db import LoraRow, ModelRow
from streamapp.errors import AppError, Unavailable
from streamapp.models import quarantine
from streamapp.models.cache import EVICTED
from streamapp.models.catalogue import locate
from streamapp.models.registered import find
from streamapp.models.shipped import POCKET
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

log = get_logger(__name__)
#: Checkpoints that stay loaded beside each other: more would only push out the first ones.
MOST = 2
#: Seconds that all loads before readiness may take together.
LIMIT = 900.0
#: Seconds between two tries to get what must be on the disk, or to reach the database: the first, the longest.
DELAY, LONGEST_DELAY = 0.5, 60.0
Row = ModelRow | LoraRow
R = TypeVar("R", ModelRow, LoraRow)


class Weights(Protocol):
    """The part of the registry that is read here."""

    async def models(self) -> list[ModelRow]:
        """Every checkpoint."""

    async def loras(self) -> list[LoraRow]:
        """Every LoRA."""


class Warm(Protocol):
    """The part of an engine that is used here."""

    async def warm(self, model: ModelRow, path: Path) -> float:
        """Load a checkpoint; the seconds it took."""


#: Fetches what a reference or a registered name means, verified, and registers it.
Pull = Callable[[str], Awaitable[object]]


class Preparing:
    """``STREAMAPP_ENSURE``, then ``STREAMAPP_PRELOAD``, once; :meth:`ping` says what is still waited for."""

    def __init__(
        self,
        settings: Settings,
        registry: Weights,
        drawing: Warm,
        *,
        checkpoint: Callable[[str], Awaitable[tuple[ModelRow, Path]]],
        bring: Callable[[Row], Awaitable[bool]] | None,
        pull: Pull,
        loaded: Callable[[str, float], object] = lambda *_: None,
        limit: float = LIMIT,
    ) -> None:
        self._settings, self._registry, self._drawing = settings, registry, drawing
        self._checkpoint, self._bring, self._pull = checkpoint, bring, pull
        self._loaded, self._limit = loaded, limit
        self._task: asyncio.Task[None] | None = None
        #: What is being done; ``None`` once the worker may say that it is ready.
        self.waiting: str | None = "this worker has not begun to prepare its weights"

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self.run(), name="preparing")

    async def close(self) -> None:
        """Stop; what was fetched so far stays, and the next start goes on from there."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def ping(self) -> None:
        """Raise ``Unavailable``, with what is waited for, until everything is there."""
        if self.waiting is not None:
            raise Unavailable(self.waiting, retry_after=2)

    async def run(self) -> None:
        """Fetch what is missing, for as long as that takes; then load, within the limit, and whatever fails."""
        try:
            for text in self._settings.ensure:
                await self._ensure(text)
            try:
                async with asyncio.timeout(self._limit):
                    await self._preload()
            except TimeoutError:
                log.warning("loading took too long to wait for it", action="preload_late", limit=self._limit)
        except Exception:  # supervised: weights that could not be prepared are made ready when somebody asks for them
            log.exception("weights could not be prepared", action="preload_failed")
        self.waiting = None

    # What must be on the disk.
    async def _ensure(self, text: str) -> None:
        """Try until it is here: a worker without it must not say that it is ready."""
        delay, self.waiting = DELAY, f"fetching {text} (STREAMAPP_ENSURE)"
        while True:
            try:
                if not await self._here(text):
                    await self._pull(text)
                    log.info("weights ensured", action="ensured", reference=text)
                return
            except AppError as error:
                self.waiting = f"{text} (STREAMAPP_ENSURE) is not here: {error.message}"
                log.warning(error.message, action="ensure_failed", reference=text, delay=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _here(self, text: str) -> bool:
        """Whether what ``text`` means is registered and on this disk, maybe since this moment, from another host."""
        row = meant(text, await self._registry.models()) or meant(text, await self._registry.loras())
        if row is None:
            return False
        try:
            await asyncio.to_thread(locate, row, self._settings)
        except AppError:
            return self._bring is not None and await self._bring(row)
        return True

    # What is loaded ahead.
    async def _preload(self) -> None:
        names = await self._names()
        if len(names) > MOST:
            log.warning("more models are named than stay loaded", action="preload_cut", left_out=names[MOST:])
        for name in names[:MOST]:
            self.waiting = f"loading {name} before anybody asks for it (STREAMAPP_PRELOAD)"
            try:
                self._loaded(name, await self._drawing.warm(*await self._checkpoint(name)))
            except AppError as error:
                log.warning(error.message, action="preload_failed", code=error.code, model=name)

    async def _names(self) -> list[str]:
        """The models to load, each once, in the order of the setting."""
        rows = [row for row in await self._models() if row.family in self._settings.families]
        names: list[str] = []
        for text in self._settings.preload:
            if text.startswith("top:"):
                names += most_used(rows)[: int(text[4:])]
            else:
                row = meant(text, rows)
                names.append(text if row is None else row.name)
        return list(dict.fromkeys(names))

    async def _models(self) -> list[ModelRow]:
        """Every checkpoint, however long the database is away."""
        delay = DELAY
        while True:
            try:
                return await self._registry.models()
            except Unavailable as error:
                log.warning(error.message, action="database_waits")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)


def meant(text: str, rows: Sequence[R]) -> R | None:
    """The row of a name, else of a reference."""
    return next((row for row in rows if row.name == text), None) or find(text, rows)


def most_used(rows: Sequence[ModelRow]) -> list[str]:
    """Names of the checkpoints here, the last used first; of those never used the one that ships comes first."""
    used: dict[str, int] = {}
    for row in rows:
        if not row.traits.get(EVICTED) and quarantine.why(row) is None:
            used[row.name] = max(used.get(row.name, 0), row.last_used_at or 0)
    return sorted(used, key=lambda name: (-used[name], name != POCKET.name, name))
