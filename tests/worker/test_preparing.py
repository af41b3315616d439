"""What a worker does about its weights before it says that it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from streamapp.db import LoraRow, ModelRow
from streamapp.errors import NotFound, Unavailable
from streamapp.models.cache import EVICTED
from streamapp.models.shipped import POCKET
from streamapp.settings import Settings
from streamapp.worker.preparing import Preparing, most_used


class Rows:
    """A registry."""

    def __init__(self, *models: ModelRow) -> None:
        self.rows, self.away = list(models), 0

    async def models(self) -> list[ModelRow]:
        """Every checkpoint; away for as many times as is said."""
        if self.away:
            self.away -= 1
            raise Unavailable("the database is away")
        return self.rows

    async def loras(self) -> list[LoraRow]:
        """None."""
        return []


class Engine:
    """Notes what was loaded; holds each load until the gate is open."""

    def __init__(self, *broken: str) -> None:
        self.loaded: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = broken

    async def warm(self, model: ModelRow, path: Path) -> float:
        """Load, or fail."""
        await self.gate.wait()
        if model.name in self.broken:
            raise NotFound("its file is gone")
        self.loaded.append(model.name)
        return 1.5


def row(name: str, used: int | None = None, **traits: object) -> ModelRow:
    """A checkpoint of the registry."""
    return replace(POCKET, name=name, source="file:", path=f"models/{name}", last_used_at=used, traits=traits)


def prepared(
    tmp_path: Path, rows: Rows, engine: Engine, pulled: list[str] | None = None, **given: Sequence[str]
) -> Preparing:
    """One to be run."""

    async def checkpoint(name: str) -> tuple[ModelRow, Path]:
        found = next((one for one in rows.rows if one.name == name), None)
        if found is None:
            raise NotFound(f"model {name} is not registered any more")
        return found, tmp_path

    async def pull(text: str) -> None:
        (pulled if pulled is not None else []).append(text)
        (tmp_path / "models" / "models").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / "models" / text).write_bytes(b"weights")

    settings = Settings(data_dir=tmp_path, **{name: tuple(value) for name, value in given.items()})  # type: ignore[arg-type]
    return Preparing(settings, rows, engine, checkpoint=checkpoint, bring=None, pull=pull)


async def test_not_ready_until_the_model_used_last_is_loaded(tmp_path: Path) -> None:
    engine = Engine()
    engine.gate.clear()
    preparing = prepared(tmp_path, Rows(row("old", 1), row("new", 2)), engine)
    with pytest.raises(Unavailable, match="not begun"):
        await preparing.ping()
    preparing.start()
    async with asyncio.timeout(5):
        while "new" not in (preparing.waiting or ""):
            await asyncio.sleep(0)
    with pytest.raises(Unavailable, match=r"loading new .*STREAMAPP_PRELOAD"):
        await preparing.ping()
    engine.gate.set()
    async with asyncio.timeout(5):
        while preparing.waiting is not None:
            await asyncio.sleep(0)
    await preparing.ping()
    await preparing.close()
    assert engine.loaded == ["new"]


async def test_named_models_are_loaded_in_order_each_once_as_many_as_stay(tmp_path: Path) -> None:
    engine = Engine()
    rows = Rows(row("a", 3), row("b", 2), row("c", 1))
    await prepared(tmp_path, rows, engine, preload=("c", "top:2", "b")).run()
    assert engine.loaded == ["c", "a"]


async def test_a_model_that_cannot_be_loaded_is_skipped(tmp_path: Path) -> None:
    engine = Engine("a")
    preparing = prepared(tmp_path, Rows(row("a"), row("b")), engine, preload=("a", "b"))
    await preparing.run()
    assert (engine.loaded, preparing.waiting) == (["b"], None)


async def test_a_load_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    engine = Engine()
    engine.gate.clear()
    preparing = prepared(tmp_path, Rows(row("a")), engine)
    preparing._limit = 0.01
    await preparing.run()
    await preparing.ping()


async def test_a_database_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamapp.worker.preparing.DELAY", 0.001)
    engine, rows = Engine(), Rows(row("a"))
    rows.away = 2
    await prepared(tmp_path, rows, engine).run()
    assert engine.loaded == ["a"]


async def test_what_must_be_here_is_pulled_only_when_it_is_not(tmp_path: Path) -> None:
    pulled: list[str] = []
    rows = Rows(row("a"), row("b"))
    (tmp_path / "models" / "models").mkdir(parents=True)
    (tmp_path / "models" / "models" / "a").write_bytes(b"weights")
    await prepared(tmp_path, rows, Engine(), pulled, ensure=("a", "b", "civitai:1@2"), preload=()).run()
    assert pulled == ["b", "civitai:1@2"]


async def test_not_ready_while_what_must_be_here_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamapp.worker.preparing.DELAY", 0.001)
    preparing = prepared(tmp_path, Rows(), Engine(), ensure=("civitai:1@2",), preload=())
    failures = 3
    tries: list[str] = []

    async def pull(text: str) -> None:
        tries.append(preparing.waiting or "")
        if len(tries) <= failures:
            raise Unavailable("the site is away")

    preparing._pull = pull
    await preparing.run()
    assert tries[0] == "fetching civitai:1@2 (STREAMAPP_ENSURE)"
    assert tries[1:] == ["civitai:1@2 (STREAMAPP_ENSURE) is not here: the site is away"] * failures
    await preparing.ping()


def test_the_model_that_ships_comes_first_until_others_were_used() -> None:
    assert most_used([row("a"), row(POCKET.name), row("gone", 9, **{EVICTED: True})]) == [POCKET.name, "a"]
    assert most_used([row("a", 1), row(POCKET.name)]) == ["a", POCKET.name]


@pytest.mark.parametrize("bad", ["top:0", "top:", "top:x"])
def test_a_number_that_is_none_stops_the_start(bad: str) -> None:
    with pytest.raises(ValueError, match="top:N"):
        Settings(preload=(bad,))
