"""The registry as submits read it: a thousand of them in a second cost a few queries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from streamapp.db import LoraRow, ModelRow, Registry

#: What the registry said is believed this long, in seconds.
FRESH = 1.0
KNOWN_NAMES = 1_000
T = TypeVar("T")


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
        return await asyncio.shield(known[1])

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
        self._model = Fresh(registry.model)
        self._lora = Fresh(registry.lora)

    async def models(self) -> list[ModelRow]:
        """Every checkpoint."""
        return await self._models.get("")

    async def loras(self) -> list[LoraRow]:
        """Every LoRA."""
        return await self._loras.get("")

    async def model(self, name: str) -> ModelRow | None:
        """The newest version of a checkpoint."""
        return await self._model.get(name)

    async def lora(self, name: str) -> LoraRow | None:
        """The newest version of a LoRA."""
        return await self._lora.get(name)
