"""A request may name what nobody registered: it is asked for at its site, fetched while the task waits, and drawn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from streamapp.db import State
from streamapp.dead import Replayed, replay_since
from streamapp.models import referenced, shipped
from streamapp.models.cache import EVICTED, PULLED_FROM
from streamapp.models.referenced import PENDING, fetched_for_requests
from streamapp.settings import Settings
from streamapp.topics import catalogue
from tests.models.publisher import Publisher
from tests.models.sites import Double, file, make_lora, playing, sd15_file, version
from tests.web.conftest import Answer, Api, Serve
from tests.web.test_prefetch import looking, row_of, until

REFERENCE = "civitai:123@456"


@pytest.fixture
async def sited(serve: Serve) -> AsyncIterator[tuple[Api, Double]]:
    """The service, which knows pocket alone, and both sites."""
    double = Double(Publisher(sd15_file()))
    async with playing(double) as url, serve(civitai_url=url, hub_url=url, allow_private_sources=True) as api:
        yield api, double


async def named(api: Api, text: str, **more: Any) -> Answer:
    """The answer to a request for this model."""
    return await api.generate({"text": "a red apple", **more, "params": {"model": text, **more.get("params", {})}})


def inks(double: Double, tmp_path: Path, **given: Any) -> None:
    """The page is about a LoRA."""
    double.publisher.body = make_lora(tmp_path / "ink.safetensors").read_bytes()
    about = {"name": "Ink", "type": "LORA", "nsfw": False}
    double.version = version(model=about, trainedWords=["inkstyle"], files=[file(double.publisher)], **given)


async def test_a_model_that_nobody_registered_is_fetched_and_its_task_goes_on(sited: tuple[Api, Double]) -> None:
    api, double = sited
    answer = (await named(api, REFERENCE)).data
    assert answer["status"] == "fetching"
    assert "is not here and is fetched first" in answer["notes"][-1]
    row = await api.runtime.registry.model("Dream-..-Shaper")
    assert row is not None
    assert (row.digest, row.family, row.traits[PULLED_FROM]) == (double.publisher.digest, "sd15", REFERENCE)
    assert (row.traits[EVICTED], row.traits[PENDING]) == (True, True)
    assert double.publisher.sent == 0, "nothing is fetched while the request is answered"
    task = await until(api, looking(api), answer["task_id"], lambda task: task.state is not State.FETCHING)
    assert (task.state, task.model) == (State.QUEUED, "Dream-..-Shaper")
    [here] = [one for one in await api.runtime.registry.models() if one.name != "pocket"]
    assert EVICTED not in here.traits
    assert PENDING not in here.traits
    assert (await api.get("/api/v1/models/Dream-..-Shaper")).data["state"] == "here"


@pytest.mark.parametrize(
    "text",
    ["civitai:123", "https://civitai.com/models/123?modelVersionId=456", "DIGEST", "AUTOV2", "owner/name",
     "urn:air:sd1:checkpoint:civitai:123@456", "owner/name:dreamy.safetensors"],
)  # fmt: skip
async def test_every_reference_is_one_row_and_one_download(sited: tuple[Api, Double], text: str) -> None:
    api, double = sited
    text = {"DIGEST": double.publisher.digest, "AUTOV2": double.publisher.digest[:10].upper()}.get(text, text)
    ids = [(await named(api, one)).data["task_id"] for one in (text, REFERENCE)]
    assert len(await api.runtime.registry.models()) == 2
    loop = looking(api)
    tasks = [await until(api, loop, task_id, lambda task: task.state is not State.FETCHING) for task_id in ids]
    assert {task.state for task in tasks} == {State.QUEUED}
    peeked = 1 if text.startswith("owner") else 0
    assert len(double.publisher.seen) == 1 + peeked, "a Hub file is asked for its header first"


async def test_a_lora_is_fetched_for_the_request_that_names_it(sited: tuple[Api, Double], tmp_path: Path) -> None:
    api, double = sited
    inks(double, tmp_path)
    asked = {"text": "a red apple", "params": {"lora_name": REFERENCE, "lora_weight": 0.5}}
    task_id = (await api.generate(asked)).data["task_id"]
    assert [(lora.name, lora.weight) for lora in (await row_of(api, task_id)).params.loras] == [("Ink", 0.5)]
    await until(api, looking(api), task_id, lambda task: task.state is State.QUEUED)
    row = await api.runtime.registry.lora("Ink")
    assert row is not None
    assert row.traits["trigger_words"] == ["inkstyle"]


async def test_a_name_that_another_model_has_is_left_to_it(sited: tuple[Api, Double]) -> None:
    api, double = sited
    assert (await api.runtime.fetches.once(REFERENCE, "Dream-..-Shaper")).name == "Dream-..-Shaper"
    double.publisher.body = sd15_file(extra=__import__("numpy").zeros(3))
    double.version["files"] = [file(double.publisher)]
    api.runtime.shelf.forget()
    answer = (await named(api, double.publisher.digest)).data
    assert (await row_of(api, answer["task_id"])).model == "Dream-..-Shaper-v8"


NO = [
    ({"availability": "EarlyAccess", "earlyAccessEndsAt": "2027-01-02T00:00:00Z"}, 403, "not_allowed", "2027-01-02"),
    ({"usageControl": "Generation"}, 403, "not_allowed", "not the download"),
    ({"baseModel": "SDXL 1.0"}, 422, "does_not_fit", "family sdxl, which no worker here serves"),
    ({"baseModel": "Something New"}, 422, "does_not_fit", "made for Something New"),
    ({"model": {"name": "Ink", "type": "LORA"}}, 422, "does_not_fit", "is a lora, and a model is asked for"),
    ({"model": {"name": "Hand", "type": "Poses"}}, 422, "does_not_fit", "is a Poses"),
    ({"files": [{"metadata": {"format": "PickleTensor"}}]}, 422, "does_not_fit", "pickled files can run code"),
    ({"files": [{"hashes": {}}]}, 422, "does_not_fit", "gives no SHA-256"),
    ({"modelId": 999}, 404, "not_found", "belongs to model 999"),
]


@pytest.mark.parametrize(("changes", "status", "code", "says"), NO)
async def test_what_cannot_be_had_or_used_is_refused_with_the_reason(
    sited: tuple[Api, Double], changes: dict[str, Any], status: int, code: str, says: str
) -> None:
    api, double = sited
    files = [file(double.publisher, **given) for given in changes.get("files", [{}])]
    double.version = version(**{**changes, "files": files})
    assert says in (await named(api, REFERENCE)).refused(status, code, field="model")
    assert [row.name for row in await api.runtime.registry.models()] == ["pocket"]
    assert await api.runtime.tasks.page() == []


@pytest.mark.parametrize(
    ("status", "answered", "code"),
    [(401, 401, "needs_token"), (403, 403, "not_allowed"), (500, 502, "fetch_failed")],
)
async def test_a_site_that_says_no_is_passed_on(
    sited: tuple[Api, Double], status: int, answered: int, code: str
) -> None:
    api, double = sited
    double.status = status
    (await named(api, REFERENCE)).refused(answered, code, field="model")


async def test_a_lora_of_another_family_is_refused_before_anything_is_fetched(
    sited: tuple[Api, Double], tmp_path: Path
) -> None:
    api, double = sited
    inks(double, tmp_path, baseModel="SDXL 1.0")
    answer = await api.generate({"text": "a", "params": {"lora_name": REFERENCE}})
    assert "fits models of family sdxl" in answer.refused(422, "does_not_fit", field="loras")
    assert (double.publisher.sent, await api.runtime.registry.loras()) == (0, list(shipped.LORAS)[::-1])


async def test_a_hub_file_without_a_header_that_says_what_it_is_is_refused(sited: tuple[Api, Double]) -> None:
    api, double = sited
    double.publisher.body = b"<html>" + bytes(500)
    double.repo["siblings"][1]["lfs"] = {"sha256": double.publisher.digest, "size": 506}
    answer = await named(api, "owner/name")
    assert "not a whole safetensors file" in answer.refused(422, "does_not_fit", field="model")
    double.publisher.body = (2**32).to_bytes(8, "little") + bytes(500)
    answer = await named(api, "owner/name:dreamy.safetensors")
    assert "not a whole safetensors file" in answer.refused(422, "does_not_fit", field="model")
    missing = await named(api, "owner/name:x.safetensors")
    assert "its weights are dreamy.safetensors" in missing.refused(404, "not_found", field="model")


async def test_who_does_not_wait_and_who_may_not_are_refused(sited: tuple[Api, Double], serve: Serve) -> None:
    api, double = sited
    (await named(api, REFERENCE, prefetch=False)).refused(404, "not_found", field="model")
    assert double.said == [], "nobody was asked"
    async with serve(fetch="registered", data_dir=api.app.settings.data_path / "other") as other:
        assert f"models pull {REFERENCE}" in (await named(other, REFERENCE)).refused(404, "not_found", field="model")


async def test_a_task_whose_fetch_fails_for_good_ends_with_that_reason(sited: tuple[Api, Double]) -> None:
    api, double = sited
    double.publisher.faults = ["other"]
    task_id = (await named(api, REFERENCE)).data["task_id"]
    task = await until(api, looking(api), task_id, lambda task: task.state is not State.FETCHING)
    assert task.error is not None
    assert (task.state, task.error["code"]) == (State.FAILED, "wrong_digest")
    assert not list((api.app.settings.data_path / "models").rglob("*.safetensors"))
    # The next request tries again.
    answer = (await named(api, REFERENCE)).data
    assert answer["status"] == "fetching"
    await until(api, looking(api), answer["task_id"], lambda task: task.state is State.QUEUED)


async def test_a_replay_of_what_failed_while_it_was_fetched_fetches_it_again(sited: tuple[Api, Double]) -> None:
    api, double = sited
    double.publisher.faults = ["403"]
    task_id = (await named(api, REFERENCE)).data["task_id"]
    loop = looking(api)
    await until(api, loop, task_id, lambda task: task.state is State.FAILED)
    answer = await api.call("POST", f"/api/v1/dead_letters/{task_id}/replay")
    assert answer.status == 200, answer.body
    assert (await row_of(api, task_id)).state is State.FETCHING
    task = await until(api, loop, task_id, lambda task: task.state is not State.FETCHING)
    assert (task.state, task.error, task.attempts) == (State.QUEUED, None, 0)


async def test_a_replay_of_topics_finds_what_never_had_a_message(sited: tuple[Api, Double]) -> None:
    api, double = sited
    double.publisher.faults = ["403"]
    task_id = (await named(api, REFERENCE)).data["task_id"]
    await until(api, looking(api), task_id, lambda task: task.state is State.FAILED)
    tasks, admin = api.runtime.tasks, api.runtime.admin
    await admin.create_topics(catalogue(api.app.settings))
    wanted = Replayed(tasks=1, requeued=1)
    assert await replay_since(admin, tasks, ["sd15_tasks_urgent"], 0) == Replayed()
    assert await replay_since(admin, tasks, ["sd15_tasks"], 2**41) == Replayed()
    assert await replay_since(admin, tasks, ["sd15_tasks"], 0, dry_run=True) == wanted
    assert await replay_since(admin, tasks, ["sd15_tasks"], 0) == wanted
    assert (await row_of(api, task_id)).state is State.FETCHING


async def test_a_thousand_requests_ask_the_site_once(sited: tuple[Api, Double]) -> None:
    api, double = sited
    answers = await asyncio.gather(*(named(api, REFERENCE) for _ in range(20)))
    assert {answer.data["status"] for answer in answers} == {"fetching"}
    assert [path for path, _ in double.said] == ["/api/v1/model-versions/456", "/api/v1/models/123"]
    double.status = 403
    for _ in range(3):
        (await named(api, "owner/name")).refused(403, "not_allowed")
    assert len(double.said) == 3, "a refusal is remembered, too"


async def test_files_that_never_came_are_bounded(sited: tuple[Api, Double], monkeypatch: pytest.MonkeyPatch) -> None:
    api, double = sited
    monkeypatch.setattr(referenced, "MOST_PENDING", 1)
    task_id = (await named(api, REFERENCE)).data["task_id"]
    double.publisher.body = sd15_file(channels=9)
    double.version["files"] = [file(double.publisher)]
    other = double.publisher.digest
    (await named(api, other)).refused(429, "overloaded")
    assert (await api.call("DELETE", f"/api/v1/image/task/{task_id}")).data["status"] == "cancelled"
    assert (await named(api, other)).data["status"] == "fetching"
    assert {row.digest for row in await api.runtime.registry.models() if row.name != "pocket"} == {other}


def test_what_requests_may_have_fetched_depends_on_who_asks_and_what_bounds_them() -> None:
    both, keys = frozenset({"civitai", "hub"}), (SecretStr("ada:0123456789abcdef0123456789abcdef"),)
    assert fetched_for_requests(Settings()) == both
    assert fetched_for_requests(Settings(api_keys=keys)) == frozenset()
    assert fetched_for_requests(Settings(api_keys=keys, models_max_bytes=10**9)) == both
    assert fetched_for_requests(Settings(api_keys=keys, fetch="any")) == both
    assert fetched_for_requests(Settings(fetch="hub")) == {"hub"}
    assert fetched_for_requests(Settings(fetch="registered")) == fetched_for_requests(Settings(fetch="off")) == set()
