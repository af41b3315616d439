"""What waiting tasks will need is read into RAM while others are drawn, so that its load does not wait for the disk."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

from streamapp.db import LoraRow, ModelRow
from streamapp.errors import AppError

#: Seconds after which the same weights are asked for again: they may have made room since.
AGAIN = 10.0
#: Names that are remembered.
KEPT = 512

#: The row of a name, or None. Raises what is wrong with the registry.
Find = Callable[[str], Awaitable[ModelRow | LoraRow | None]]


class Ahead:
    """Asks for weights in the background, one after the other.

    Args:
        model, lora: find the row of a name.
        locate: where the weights of a row lie on this host; blocks, raises AppError when they do not.
        bring: has them read into RAM unless they are there or nearer.
    """

    def __init__(
        self,
        model: Find,
        lora: Find,
        locate: Callable[[ModelRow | LoraRow], Path],
        bring: Callable[[ModelRow | LoraRow, Path], Awaitable[None]],
    ) -> None:
        self._find = {"model": model, "lora": lora}
        self._locate, self._bring = locate, bring
        self._asked: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def want(self, models: Iterable[str], loras: Iterable[str], now: float) -> None:
        """These will be needed soon, the first ones first; returns at once. ``now`` is in seconds."""
        if self._task is not None and not self._task.done():
            return
        names = [*(("model", name) for name in models), *(("lora", name) for name in loras)]
        fresh = [name for name in dict.fromkeys(names) if now - self._asked.get(name, -AGAIN) >= AGAIN]
        for name in fresh:
            self._asked[name] = now
            self._asked.move_to_end(name)
        while len(self._asked) > KEPT:
            self._asked.popitem(last=False)
        if fresh:
            self._task = asyncio.create_task(self._all(fresh), name="weights ahead")

    async def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _all(self, names: Iterable[tuple[str, str]]) -> None:
        for kind, name in names:
            with suppress(AppError):  # whoever needs the weights is told
                row = await self._find[kind](name)
                if row is not None:
                    await self._bring(row, await asyncio.to_thread(self._locate, row))
