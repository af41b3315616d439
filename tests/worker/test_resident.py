"""What the worker knows of the engine's weights, and how a load waits for room."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from streamapp.db import LoraRow
from streamapp.engine.aio import AsyncEngine
from streamapp.engine.errors import EngineError
from streamapp.engine.tiers import Loaded
from streamapp.models.shipped import POCKET
from streamapp.models.steering import engine_name
from streamapp.worker.drawing import Order
from streamapp.worker.resident import CONTROLS, Resident


class Small:
    """An engine with room for one checkpoint, which it gives up unless that is to be kept."""

    def __init__(self) -> None:
        self.here: list[str] = []
        self.ahead: list[str] = []
        self.asked = asyncio.Event()
        self.gone: list[str] = []
        self.busy = False

    async def load(self, name: str, path: Path, family: str, variant: Any = None, keep: Any = ()) -> Loaded:
        """Load."""
        del path, variant
        if family == "controlnet":
            return Loaded(name, "disk", 1, 0.1)
        self.asked.set()
        if set(self.here) & set(keep):
            raise EngineError("no_room", "it has to wait", retryable=True)
        gone, self.here = tuple(self.here), [name]
        return Loaded(name, "ram", 1, 0.1, gone)

    async def unload(self, name: str) -> None:
        """Free."""
        if self.busy:
            raise EngineError("invalid_job", "it is in use")
        self.gone.append(name)

    async def prefetch(self, path: Path, *_: Any) -> None:
        """Read ahead."""
        self.ahead.append(str(path))

    def stats(self) -> dict[str, Any]:
        """What RAM holds."""
        return {"tiers": {"ram": {"paths": [str(Path(path).absolute()) for path in (*self.ahead, "one")]}}}


def model(name: str) -> Any:
    return replace(POCKET, name=name)


def net(number: int) -> LoraRow:
    return LoraRow(f"edges {number}", "1", "sd15", "file:", "x", f"{number:064d}"[::-1], traits={"kind": "controlnet"})


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


async def test_controlnets_that_nobody_draws_with_make_room(engine: Small, resident: Resident) -> None:
    for number in range(CONTROLS):
        assert await resident.control(net(number), Path(f"{number}"))
    assert not await resident.control(net(0), Path("0"))
    order = Order(cast("Any", None), model("one"), Path("one"), controls=((net(1), Path("1"), b""),))
    resident.users["task"] = order
    assert await resident.control(net(9), Path("9"))
    # The first one was used a moment ago, the second is drawn with.
    assert engine.gone == [engine_name(net(2))]
    assert set(resident.loras) == {f"edges {number}" for number in (0, 1, 3, 4, 9)}
    engine.busy = True
    assert await resident.control(net(8), Path("8"))
    assert len(resident.loras) == CONTROLS + 1


async def test_another_file_of_the_same_name_is_another_controlnet(resident: Resident) -> None:
    assert await resident.control(net(1), Path("1"))
    assert await resident.control(replace(net(1), digest="f" * 64), Path("1"))


async def test_weights_that_are_there_are_not_read_ahead(engine: Small, resident: Resident) -> None:
    await resident.model(model("one"), Path("one"))
    await resident.ahead(model("one"), Path("one"))
    await resident.ahead(model("two"), Path("two"))
    assert engine.ahead == ["two"]
    assert resident.checkpoints == {"one": "vram", "two": "ram"}
