"""The registry as submits read it: a thousand of them in a second cost a few queries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from streamapp.db import LoraRow, ModelRow, Registry
from streamapp.errors import InvalidRequest
from streamapp.models.registered import find

#: What the registry said is believed this long, in seconds.
FRESH = 1.0
KNOWN_NAMES = 1_000
T = TypeVar("T")
R = TypeVar("R", ModelRow, LoraRow)


class Fresh(Generic[T]):
    """Answers of one question by argument, each asked at most once a second however many callers wait for it."""

    def __init__(self, ask: Callable[[str], Awaitable[T]]) -> None:
        self._ask = ask
        self._known: dict[str, tuple[float, asyncio.Task[T]]] = {}

    async def get(self, name: str) -> T:
        """The answer, at most a second old; a failed one is asked again by the next caller."""
        loop = asyncio.get_running_loop()
        known = self._known.get(name)
        if known is None or known[0] < loop.time() or (known[1].done() and known[1].exception() is not None):
            if len(self._known) >= KNOWN_NAMES:
                self._known.clear()
            known = (loop.time() + FRESH, asyncio.ensure_future(self._run(name)))
            known[1].add_done_callback(_look)
            self._known[name] = known
        return known[1].result() if known[1].done() else await asyncio.shield(known[1])

    def forget(self) -> None:
        """Ask again from now on: the registry was just changed by this process."""
        self._known.clear()

    async def _run(self, name: str) -> T:
        return await self._ask(name)


def _look(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


class Shelf:
    """The registry, read at most once a second per name."""

    def __init__(self, registry: Registry) -> None:
        self._models = Fresh(lambda _: registry.models())
        self._loras = Fresh(lambda _: registry.loras())
        self._registry = registry
        self._model = Fresh(self._find_model)
        self._lora = Fresh(self._find_lora)

    def forget(self) -> None:
        """Read the registry anew: this process has just changed it."""
        for known in (self._models, self._loras, self._model, self._lora):
            known.forget()

    async def models(self) -> list[ModelRow]:
        """Every checkpoint."""
        return await self._models.get("")

    async def loras(self) -> list[LoraRow]:
        """Every LoRA."""
        return await self._loras.get("")

    async def model(self, name: str) -> ModelRow | None:
        """The newest version of a checkpoint, by its name, digest, AutoV2 hash or the page it came from.

        Raises:
            InvalidRequest: another version of that name is drawn with, or it is an address that cannot be read.
        """
        return await self._model.get(name)

    async def lora(self, name: str) -> LoraRow | None:
        """The newest version of a LoRA, by anything that :meth:`model` takes.

        Raises:
            InvalidRequest: see :meth:`model`.
        """
        return await self._lora.get(name)

    async def _find_model(self, text: str) -> ModelRow | None:
        known = await self._registry.model(text)
        if known is not None or (row := find(text, await self.models())) is None:
            return known
        return _newest(row, await self._registry.model(row.name))

    async def _find_lora(self, text: str) -> LoraRow | None:
        known = await self._registry.lora(text)
        if known is not None or (row := find(text, await self.loras())) is None:
            return known
        return _newest(row, await self._registry.lora(row.name))


def _newest(row: R, newest: R | None) -> R:
    """Tasks name weights, and the name means the newest version."""
    if newest is None or newest.digest == row.digest:
        return newest or row
    raise InvalidRequest(
        f"this is version {row.version} of {row.name}, and {row.name} is version {newest.version} by now: register the "
        "older one under a name of its own",
        name=row.name,
    )
