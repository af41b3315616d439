"""Which tasks say that they waited for a load, and what the scheduler learns from it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from streamapp.db import TaskRow
from streamapp.engine.aio import AsyncEngine
from streamapp.engine.tiers import Loaded
from streamapp.models.shipped import POCKET
from streamapp.worker.drawing import LOADED, Order
from streamapp.worker.engine import EngineDrawing
from tests.worker.support import params


class Slow:
    """An engine whose loads end when the gate opens."""

    state = "ready"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()

    async def load(self, name: str, *_: Any) -> Loaded:
        """Load."""
        self.begun.set()
        await self.gate.wait()
        return Loaded(name, "disk", 5_000_000, 0.5)


def order(task_id: str, model: str = "pocket") -> Order:
    """An order for a model."""
    row = cast("TaskRow", SimpleNamespace(id=task_id, params=params(model=model)))
    return Order(row, replace(POCKET, name=model), Path(model))


async def test_who_waits_for_the_load_of_another_says_so_and_teaches_the_scheduler_nothing() -> None:
    engine = Slow()
    drawing = EngineDrawing(cast("AsyncEngine", engine))
    first = asyncio.create_task(drawing._prepare(order("first")))
    async with asyncio.timeout(5):
        await engine.begun.wait()
    second = asyncio.create_task(drawing._prepare(order("second")))
    await asyncio.sleep(0)
    engine.gate.set()
    async with asyncio.timeout(5):
        told = await first
        assert set(told) == {"load", "load_disk", "load_mb", LOADED}
        assert (told["load_disk"], told["load_mb"]) == (0.5, 5.0)
        assert set(await second) == {"load"}
        assert await drawing._prepare(order("third")) == {}
