"""Fetching over HTTP: progress, one download for whatever is asked twice, failures, and what made room before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamapp.models.cache import EVICTED, marked
from streamapp.models.cache import save as save_row
from streamapp.runtime import _resident
from tests.models.publisher import Publisher
from tests.models.sites import Double, playing, sd15_file
from tests.web.conftest import Answer, Api, Serve


async def ended(api: Api, started: Answer, **given: Any) -> dict[str, Any]:
    """The fetch when it is over."""
    assert started.status == 202, started.body
    async with asyncio.timeout(20):
        while True:
            fetch: dict[str, Any] = (await api.get(started.json["data"]["query_url"], **given)).data
            if fetch["state"] in {"done", "failed"}:
                return fetch
            await asyncio.sleep(0.01)


@pytest.fixture
async def sited(serve: Serve) -> AsyncIterator[tuple[Api, Double]]:
    """The service with both sites behind it."""
    double = Double(Publisher(sd15_file()))
    async with playing(double) as url, serve(civitai_url=url, hub_url=url, allow_private_sources=True) as api:
        yield api, double


async def test_a_fetch_shows_its_progress_and_its_model_is_drawn_with_at_once(sited: tuple[Api, Double]) -> None:
    api, double = sited
    digest = double.publisher.digest
    asked = {"text": "a red apple", "params": {"model": "civitai:123@456"}, "prefetch": False}
    assert "pull civitai:123@456" in (await api.generate(asked)).refused(404, "not_found", field="model")
    started = await api.call("POST", "/api/v1/models/pull", {"reference": "civitai:123@456", "name": "dream"})
    fetch = await ended(api, started)
    size = len(double.publisher.body)
    assert (fetch["state"], fetch["bytes"], fetch["total"], fetch["error"]) == ("done", size, size, None)
    assert (fetch["kind"], fetch["row"]["name"], fetch["row"]["digest"]) == ("model", "dream", digest)
    assert [one["id"] for one in (await api.get("/api/v1/fetches")).data["fetches"]] == [fetch["id"]]
    for text in (
        "civitai:123@456", "civitai:123", digest, digest[:10].upper(), "urn:air:sd1:checkpoint:civitai:123@456",
        "https://civitai.com/models/123?modelVersionId=456", "dream",
    ):  # fmt: skip
        task_id = await api.submitted(params={"model": text})
        row = await api.runtime.tasks.get(task_id)
        assert row is not None
        assert (row.model, row.params.model) == ("dream", "dream")
    unknown = await api.generate({"text": "a", "params": {"model": "civitai:123@9"}})
    assert "civitai:123@456 (v8)" in unknown.refused(404, "not_found", field="model")
    (await api.call("DELETE", "/api/v1/models/dream")).refused(409, "conflict")


async def test_the_same_reference_twice_is_one_fetch_and_one_digest_one_download(sited: tuple[Api, Double]) -> None:
    api, double = sited
    bodies = [{"reference": "civitai:123@456"}] * 2 + [
        {"reference": double.publisher.digest},
        {"reference": "owner/name"},
    ]
    answers = [await api.call("POST", "/api/v1/models/pull", body) for body in bodies]
    ids = [answer.json["data"]["id"] for answer in answers]
    assert (ids[0] == ids[1], len(set(ids))) == (True, 3)
    fetches = [await ended(api, answer) for answer in answers]
    assert {fetch["state"] for fetch in fetches} == {"done"}, fetches
    assert double.publisher.sent == len(double.publisher.body)


async def test_a_fetch_that_fails_says_why(sited: tuple[Api, Double]) -> None:
    api, double = sited
    double.publisher.faults = ["403"]
    fetch = await ended(api, await api.call("POST", "/api/v1/models/pull", {"reference": "civitai:123@456"}))
    assert (fetch["state"], fetch["error"]["code"], fetch["row"]) == ("failed", "not_allowed", None)
    (await api.call("POST", "/api/v1/models/pull", {"reference": "something"})).refused(400, "invalid_request")
    (await api.call("POST", "/api/v1/models/pull", {"name": "x"})).refused(400, "invalid_request", field="reference")
    (await api.call("POST", "/api/v1/models/pull", {"reference": "pocket"})).refused(400, "invalid_request")
    (await api.get("/api/v1/fetches/nothing")).refused(404, "not_found")


async def test_who_does_not_wait_for_what_made_room_hears_what_brings_it_back(sited: tuple[Api, Double]) -> None:
    api, _ = sited
    await ended(api, await api.call("POST", "/api/v1/models/pull", {"reference": "civitai:123@456", "name": "dream"}))
    registry = api.runtime.registry
    row = await registry.model("dream")
    assert row is not None
    (api.app.settings.data_path / "models" / row.path).unlink()
    await save_row(registry, marked(row, EVICTED, value=True))
    api.runtime.shelf.forget()
    asked = {"text": "a red apple", "params": {"model": "dream"}, "prefetch": False}
    assert "pull civitai:123@456" in (await api.generate(asked)).refused(409, "not_here", field="model")
    assert (await api.get("/api/v1/models/dream")).data["state"] == "evicted"
    fetch = await ended(api, await api.call("POST", "/api/v1/models/pull", {"reference": "dream"}))
    assert (fetch["state"], fetch["name"]) == ("done", "dream")
    assert (await api.generate(asked)).status == 200
    assert (await api.get("/api/v1/models/dream")).data["state"] == "here"


async def test_what_workers_hold_in_memory_is_resident_and_what_lies_on_their_disks_is_not(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w1": {"checkpoints": {"dream": "ram", "cold": "disk"}, "loras": {"brush": "vram", "ink": "disk"}}}
    assert _resident(api.app) == set()
    monkeypatch.setattr("streamapp.read_models.lora_state", lambda _: state)
    assert _resident(api.app) == {("model", "dream"), ("lora", "brush")}
