"""A task whose weights are on their way to this host costs the others nothing, and no attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import cast

import pytest

from streamapp.db import LoraRow, ModelRow, Registry, State
from streamapp.errors import NotFound
from streamapp.models.catalogue import place_of
from streamapp.models.shipped import POCKET
from streamapp.models.verified import DamagedWeights
from streamapp.worker import lives, pictures
from streamapp.worker.loading import LoadFailed, loading
from streamapp.worker.pictures import Orders
from tests.worker.conftest import Bench

DREAM = replace(POCKET, name="dream", source="file:", path="models/dream.safetensors")


class Site:
    """Brings the file once the gate is open, or says that there is none."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.gate, self.asked, self.found = bench, asyncio.Event(), 0, True

    async def __call__(self, row: ModelRow | LoraRow) -> bool:
        self.asked += 1
        await self.gate.wait()
        if self.found:
            path = place_of(row, self.bench.settings)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
        return self.found


@pytest.fixture
async def site(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(bench)
    monkeypatch.setattr(pictures, "MOMENT", 0.02)
    monkeypatch.setattr(lives, "COMING", 0.05)
    monkeypatch.setattr(cast("Orders", bench.worker.lives.parts.order), "_bring", site)
    await Registry(bench.database).add_model(DREAM)
    return site


def asked_twice(site: Site) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return site.asked >= 2

    return asked


async def test_others_are_drawn_while_it_comes(bench: Bench, site: Site) -> None:
    bench.drawing.capacity = 1
    await bench.submit("t1", model="dream")
    await bench.until(asked_twice(site))
    await bench.submit("t2")
    assert await bench.ended("t2") == {"t2": State.SUCCEEDED}
    assert (await bench.row("t1")).state in {State.QUEUED, State.RUNNING}
    site.gate.set()
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    row = await bench.row("t1")
    assert (row.attempts, row.history) == (1, ())


async def test_what_cannot_be_had_ends_its_task(bench: Bench, site: Site) -> None:
    site.found = False
    site.gate.set()
    await bench.submit("t1", model="dream")
    assert await bench.ended("t1") == {"t1": State.FAILED}
    error = (await bench.row("t1")).error
    assert error is not None
    assert (error["code"], "cannot be fetched" in error["message"]) == ("not_found", True)


async def test_a_model_that_is_loaded_ahead_waits_for_its_file(bench: Bench, site: Site) -> None:
    orders = cast("Orders", bench.worker.lives.parts.order)
    waiting = asyncio.create_task(orders.checkpoint("dream"))
    await bench.until(asked_twice(site))
    site.gate.set()
    async with asyncio.timeout(5):
        row, path = await waiting
    assert (row.name, path.read_bytes()) == ("dream", b"weights")
    with pytest.raises(NotFound):
        await orders.checkpoint("nothing")


async def test_a_damaged_file_is_brought_anew_and_its_task_loses_no_attempt(bench: Bench, site: Site) -> None:
    place_of(DREAM, bench.settings).parent.mkdir(parents=True)
    place_of(DREAM, bench.settings).write_bytes(b"spoilt")
    with pytest.raises(LoadFailed) as spoilt, loading(DREAM):
        raise DamagedWeights("dream: its file has sha256 …")
    mended: list[str] = []

    async def mend(row: ModelRow | LoraRow) -> bool:
        mended.append(row.name)
        place_of(row, bench.settings).unlink()
        site.gate.set()
        return True

    life = bench.worker.lives
    life.parts = replace(life.parts, mend=mend)
    bench.drawing.failures["t1"] = [spoilt.value]
    await bench.submit("t1", model="dream", max_attempts=1)
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    row, dream = await bench.row("t1"), await Registry(bench.database).model("dream")
    assert (mended, site.asked, row.attempts, row.history) == (["dream"], 1, 1, ())
    assert dream is not None
    assert not dream.traits.get("load_failures"), "it counts against the weights"


async def test_a_damaged_file_that_cannot_be_had_ends_its_task(bench: Bench, site: Site) -> None:
    del site

    async def mend(row: ModelRow | LoraRow) -> bool:
        del row
        return False

    with pytest.raises(LoadFailed) as spoilt, loading(POCKET):
        raise DamagedWeights("pocket: its file has sha256 …")
    life = bench.worker.lives
    life.parts = replace(life.parts, mend=mend)
    bench.drawing.failures["t1"] = [spoilt.value]
    await bench.submit("t1")
    assert await bench.ended("t1") == {"t1": State.FAILED}
    error = (await bench.row("t1")).error
    assert error is not None
    assert error["code"] == "damaged_weights"
