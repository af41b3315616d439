"""What the worker knows of the engine's weights, and how a load waits for room."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from streamapp.engine.aio import AsyncEngine
from streamapp.engine.errors import EngineError
from streamapp.engine.tiers import Loaded
from streamapp.models.catalogue import POCKET
from streamapp.worker.resident import Resident


class Small:
    """An engine with room for one checkpoint, which it gives up unless that is to be kept."""

    def __init__(self) -> None:
        self.here: list[str] = []
        self.ahead: list[str] = []
        self.asked = asyncio.Event()

    async def load(self, name: str, path: Path, family: str, variant: Any, keep: set[str]) -> Loaded:
        """Load."""
        del path, family, variant
        self.asked.set()
        if set(self.here) & keep:
            raise EngineError("no_room", "it has to wait", retryable=True)
        gone, self.here = tuple(self.here), [name]
        return Loaded(name, "ram", 1, 0.1, gone)

    async def prefetch(self, path: Path, *_: Any) -> None:
        """Read ahead."""
        self.ahead.append(str(path))

    def stats(self) -> dict[str, Any]:
        """What RAM holds."""
        return {"tiers": {"ram": {"paths": [str(Path(path).absolute()) for path in (*self.ahead, "one")]}}}


def model(name: str) -> Any:
    return replace(POCKET, name=name)


@pytest.fixture
def engine() -> Small:
    return Small()


@pytest.fixture
def resident(engine: Small) -> Resident:
    return Resident(cast("AsyncEngine", engine), lambda *_: None)


async def test_a_load_waits_for_the_tasks_that_draw_with_what_could_make_room(
    engine: Small, resident: Resident
) -> None:
    await resident.model(model("one"), Path("one"))
    resident.drawn_with["task"] = "one"
    engine.asked.clear()
    second = asyncio.create_task(resident.model(model("two"), Path("two")))
    async with asyncio.timeout(5):
        await engine.asked.wait()
        assert not second.done()
        assert resident.checkpoints["one"] == "vram"
        resident.ended("task")
        loaded = await second
    assert loaded is not None
    assert loaded.evicted == ("one",)
    assert resident.checkpoints == {"one": "ram", "two": "vram"}


async def test_what_is_there_is_not_loaded_again_and_what_went_is(engine: Small, resident: Resident) -> None:
    assert await resident.model(model("one"), Path("one")) is not None
    assert await resident.model(model("one"), Path("one")) is None
    assert await resident.model(model("two"), Path("two")) is not None
    assert await resident.model(model("one"), Path("one")) is not None
    assert engine.here == ["one"]


async def test_weights_that_are_there_are_not_read_ahead(engine: Small, resident: Resident) -> None:
    await resident.model(model("one"), Path("one"))
    await resident.ahead(model("one"), Path("one"))
    await resident.ahead(model("two"), Path("two"))
    assert engine.ahead == ["two"]
    assert resident.checkpoints == {"one": "vram", "two": "ram"}
