"""Operators make weights ready before anybody asks, and let them out of quarantine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from streamapp.cli import main
from streamapp.db import LoraRow
from streamapp.engine.errors import EngineError
from streamapp.models import quarantine
from streamapp.models.cache import EVICTED, PULLED_FROM, mark
from streamapp.models.catalogue import add_file
from streamapp.models.shipped import POCKET
from tests.models.make_lora import make_lora
from tests.models.publisher import Publisher
from tests.models.sites import Double, playing, sd15_file
from tests.web.conftest import Api, Serve
from tests.worker.fake_drawing import FakeDrawing
from web import upkeep

CAUSE = EngineError("load_failed", "a key is missing")


@pytest.fixture
async def sited(serve: Serve) -> AsyncIterator[tuple[Api, Double]]:
    double = Double(Publisher(sd15_file()))
    async with playing(double) as url, serve(civitai_url=url, hub_url=url, allow_private_sources=True) as api:
        yield api, double


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What the engine was told to load, and whether its file was there."""
    seen: list[tuple[str, bool]] = []

    async def warm(_: Any, model: Any, path: Path) -> float:
        seen.append((model.name, path.exists()))
        return 0.5

    monkeypatch.setattr(FakeDrawing, "warm", warm)
    return seen


async def test_a_model_is_loaded_before_anybody_asks(api: Api, warmed: list[tuple[str, bool]]) -> None:
    said = (await api.call("POST", "/api/v1/models/pocket/warm")).data
    assert (said["name"], said["kind"], said["state"]) == ("pocket", "model", "ready")
    assert warmed == [("pocket", True)]
    (await api.call("POST", "/api/v1/models/poket/warm")).refused(404, "not_found")


async def test_what_made_room_is_fetched_first(sited: tuple[Api, Double], warmed: list[tuple[str, bool]]) -> None:
    api, double = sited
    row = await api.runtime.fetches.once("civitai:123@456", "dream")
    (api.app.settings.data_path / "models" / row.path).unlink()
    await mark(api.runtime.registry, row, EVICTED, value=True)
    double.publisher.faults = ["403"]
    refused = await api.call("POST", "/api/v1/models/dream/warm")
    assert "accept its terms" in refused.refused(502, "not_allowed")
    assert (await api.call("POST", "/api/v1/models/dream/warm")).data["state"] == "ready"
    assert warmed == [("dream", True)]


async def test_who_does_not_get_an_answer_at_once_asks_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def warm(*_: Any) -> float:
        await gate.wait()
        return 0.5

    monkeypatch.setattr(FakeDrawing, "warm", warm)
    monkeypatch.setattr(upkeep, "WAIT", 0.05)
    answer = await api.call("POST", "/api/v1/models/pocket/warm")
    assert (answer.status, answer.json["data"]["state"]) == (202, "on its way")
    gate.set()
    monkeypatch.setattr(upkeep, "WAIT", 20.0)
    url = f"http://127.0.0.1:{api.app.port}"
    result = await asyncio.to_thread(CliRunner().invoke, main, ("models", "warm", "pocket", "--url", url))
    assert (result.exit_code, "pocket is ready, after " in result.stdout) == (0, True), result.output


async def test_a_damaged_lora_is_fetched_again_where_its_publisher_has_it(serve: Serve, tmp_path: Path) -> None:
    path = make_lora(tmp_path / "brush.safetensors")
    double = Double(Publisher(path.read_bytes()))
    async with playing(double) as url, serve(civitai_url=url, hub_url=url, allow_private_sources=True) as api:
        registry = api.runtime.registry
        row = await add_file(registry, api.app.settings, "brush", path, "lora", "sd15")
        await registry.edit(row, lambda traits: {**traits, PULLED_FROM: "owner/name"})
        file = api.app.settings.data_path / "models" / row.path
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        assert (await api.call("POST", "/api/v1/loras/brush/warm")).data["state"] == "ready"
        assert file.read_bytes() == double.publisher.body


async def test_a_lora_is_read_and_a_damaged_one_is_named(api: Api, tmp_path: Path) -> None:
    path = make_lora(tmp_path / "brush.safetensors")
    row = await add_file(api.runtime.registry, api.app.settings, "brush", path, "lora", "sd15")
    assert isinstance(row, LoraRow)
    assert (await api.call("POST", "/api/v1/loras/brush/warm")).data["state"] == "ready"
    file = api.app.settings.data_path / "models" / row.path
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    (await api.call("POST", "/api/v1/loras/brush/warm")).refused(500, "damaged_weights")


async def test_a_quarantine_is_lifted_by_release(api: Api, warmed: list[tuple[str, bool]]) -> None:
    for _ in range(quarantine.LIMIT):
        await quarantine.failed(api.runtime.registry, POCKET, CAUSE)
    (await api.call("POST", "/api/v1/models/pocket/warm")).refused(409, "quarantined")
    assert warmed == []
    for was in (True, False):
        said = (await api.call("POST", "/api/v1/models/pocket/release")).data
        assert said == {"name": "pocket", "released": was}
    assert (await api.call("POST", "/api/v1/models/pocket/warm")).data["state"] == "ready"


async def test_only_operators_do_this(serve: Serve) -> None:
    keys = (SecretStr("eve:0123456789abcdef0123456789abcdef"),)
    async with serve(api_keys=keys, operators=("ada",)) as api:
        for action in ("warm", "release"):
            answer = await api.call(
                "POST", f"/api/v1/models/pocket/{action}",
                headers={"Authorization": "Bearer 0123456789abcdef0123456789abcdef"},
            )  # fmt: skip
            answer.refused(403, "operators_only")
