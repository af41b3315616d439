"""Submitting: what is accepted means what it says, what is not is refused with what to change."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamapp.db import LoraRow, State, census
from streamapp.errors import Unavailable
from streamapp.recipe import recipe_body
from tests.web.conftest import Api, Broken, Serve


async def test_an_accepted_task_says_where_it_is_and_what_will_be_drawn(api: Api) -> None:
    answer = await api.generate({"text": "a cute panda", "params": {"resolution": "512×512", "seed": 7}})
    data = answer.data
    task_id = data["task_id"]
    assert answer.json["message"] == "accepted"
    assert task_id.startswith("img-20")
    assert {key: data[key] for key in ("status", "progress", "drawn_at", "delivered_at", "seed")} == {
        "status": "queued",
        "progress": 0.0,
        "drawn_at": "128x128",
        "delivered_at": "512x512",
        "seed": 7,
    }
    assert data["query_url"] == f"/api/v1/image/task/{task_id}"
    assert data["estimated_time"] >= 0
    assert "drawn at 128x128 and enlarged to 512x512" in data["notes"][0]
    row = await api.runtime.tasks.get(task_id)
    assert row is not None
    assert (row.state, row.params.seed, row.user_id, row.priority) == (State.QUEUED, 7, "local", 2)


async def test_every_field_reaches_the_row(api: Api) -> None:
    params = {
        "width": 128, "height": 112, "style": "watercolor", "steps": 12, "cfg_scale": 2.5, "sampler": "Euler a",
        "seed": 42, "negative_text": "blurry", "batch_size": 3, "model": "pocket", "clip_skip": 2,
    }  # fmt: skip
    body = {"text": "可爱的熊猫", "params": params, "priority": "P1", "callback_url": "https://example.com/done"}
    row = await api.runtime.tasks.get((await api.generate(body)).data["task_id"])
    assert row is not None
    drawn = row.params
    assert (str(drawn.delivered), drawn.style, drawn.steps, drawn.guidance) == ("128x112", "watercolor", 12, 2.5)
    assert (drawn.clip_skip, recipe_body(drawn, 0)["params"]["clip_skip"]) == (2, 2)
    assert (drawn.sampler, drawn.seed, drawn.negative_prompt, drawn.n) == ("Euler a", 42, "blurry", 3)
    assert (row.priority, row.callback_url, row.request) == (1, "https://example.com/done", body)
    assert drawn.text == "可爱的熊猫"
    assert drawn.prompt.startswith("可爱的熊猫,")


async def test_a_layer_that_the_text_encoder_lacks_is_refused_at_once(api: Api) -> None:
    refused = await api.generate({"text": "a cat", "params": {"clip_skip": 3}})
    assert (refused.status, refused.json["field"]) == (400, "clip_skip")
    assert refused.json["message"] == "clip_skip is 3, pocket takes 1 to 2"


async def test_the_recipe_of_a_task_can_be_submitted_again(api: Api) -> None:
    first = await api.submitted(params={"style": "ink", "batch_size": 2, "resolution": "256x256"})
    recipe = (await api.get(f"/api/v1/image/task/{first}")).data["recipe"]
    second = (await api.generate(recipe)).data["task_id"]
    rows = [await api.runtime.tasks.get(task_id) for task_id in (first, second)]
    assert rows[0] is not None
    assert rows[1] is not None
    assert first != second
    assert rows[0].params == rows[1].params


REFUSED: list[tuple[Any, str, str]] = [
    ({}, "text", "text is missing"),
    ({"text": "  "}, "text", "text is empty"),
    ({"text": 7}, "text", "must be a valid string"),
    ({"text": "x" * 4_001}, "text", "4001 characters, at most 4000"),
    ({"prompt": "a panda"}, "text", "it is called text"),
    ({"text": "a", "promt": "b"}, "promt", "is not a field here"),
    ({"text": "a", "seed": 3}, "seed", "belongs into params, as seed"),
    ({"text": "a", "priority": "P4"}, "priority", "must be P0, P1, P2 or P3"),
    ({"text": "a", "priority": True}, "priority", "must be P0, P1, P2 or P3"),
    ({"text": "a", "params": []}, "params", "must be a valid dictionary"),
    ({"text": "a", "params": {"size": "1x1"}}, "params.size", "it is called resolution"),
    ({"text": "a", "params": {"n": 3}}, "params.n", "it is called batch_size"),
    ({"text": "a", "n": 3}, "n", "belongs into params, as batch_size"),
    ({"text": "a", "params": {"idempotency_key": "x"}}, "params.idempotency_key", "belongs beside params"),
    ({"text": "a", "params": {"postprocess": {}}}, "params.postprocess", "planned, but not built yet"),
    ({"text": "a", "postprocess": {}}, "postprocess", "planned, but not built yet"),
    ({"text": "a", "params": {"stepz": 3}}, "params.stepz", "did you mean steps"),
    ({"text": "a", "params": {"steps": 0}}, "params.steps", "greater than or equal to 1, not 0"),
    ({"text": "a", "params": {"steps": 151}}, "params.steps", "less than or equal to 150, not 151"),
    ({"text": "a", "params": {"steps": "many"}}, "params.steps", "not 'many'"),
    ({"text": "a", "params": {"cfg_scale": 31}}, "params.cfg_scale", "less than or equal to 30"),
    ({"text": "a", "params": {"cfg_scale": True}}, "params.cfg_scale", "must be a number"),
    ({"text": "a", "params": {"sampler": "Eulr"}}, "sampler", "Euler"),
    ({"text": "a", "params": {"sampler": "DDIM Karras"}}, "sampler", "cannot take the schedule Karras"),
    ({"text": "a", "params": {"style": "watercolr"}}, "style", "watercolor"),
    ({"text": "a", "params": {"loras": [{"nam": "ink"}]}}, "params.loras.0.name", "is missing"),
    ({"text": "a", "params": {"lora_weight": 1}}, "lora_weight", "needs lora_name"),
    ({"text": "a", "params": {"lora_name": "a", "loras": [{"name": "b"}]}}, "loras", "not both"),
    ({"text": "a", "params": {"lora_name": "a", "lora_weight": 3}}, "params.lora_weight", "less than or equal to 2"),
    ({"text": "a", "params": {"loras": [{"name": str(i)} for i in range(6)]}}, "loras", "at most 5 can be combined"),
    ({"text": "a", "params": {"loras": [{"name": "a"}, {"name": "a"}]}}, "loras", "named twice"),
    ({"text": "a", "params": {"resolution": "big"}}, "resolution", "512x512"),
    ({"text": "a", "params": {"resolution": "0x512"}}, "resolution", ""),
    ({"text": "a", "params": {"width": 512}}, "width", "go together"),
    ({"text": "a", "params": {"resolution": "64x64", "width": 512, "height": 512}}, "resolution", "give one"),
    ({"text": "a", "params": {"resolution": "512x512", "strict_size": True}}, "resolution", "128"),
    ({"text": "a", "params": {"seed": -2}}, "params.seed", "greater than or equal to -1"),
    ({"text": "a", "params": {"seed": 2**32}}, "params.seed", "less than or equal to 4294967295"),
    ({"text": "a", "params": {"seed": 2**32 - 1, "batch_size": 2}}, "seed", "take a smaller seed"),
    ({"text": "a", "params": {"batch_size": 101}}, "batch_size", "more than the 100 pictures"),
    ({"text": "a", "callback_url": "ftp://example.com"}, "callback_url", "must start with http"),
    ({"text": "a", "callback_url": "http://127.0.0.1/x"}, "callback_url", "not a public address"),
    ({"text": "a", "callback_url": "http://u:p@example.com/"}, "callback_url", "user name or password"),
    ({"text": "a", "idempotency_key": ""}, "idempotency_key", "at least 1 character"),
]


async def test_each_refusal_names_the_field_and_what_to_change(api: Api) -> None:
    for body, field, says in REFUSED:
        message = (await api.generate(body)).refused(400, "invalid_request", field=field)
        assert says in message, (body, message)
    assert await api.runtime.tasks.page() == []


@pytest.mark.parametrize(
    ("params", "field", "says"),
    [
        ({"model": "poket"}, "model", "did you mean pocket"),
        ({"loras": [{"name": "crayon"}]}, "loras", "'crayon' is not registered here"),
    ],
)
async def test_a_name_that_nobody_knows_is_not_found(api: Api, params: dict[str, Any], field: str, says: str) -> None:
    answer = await api.generate({"text": "a", "params": params})
    assert says in answer.refused(404, "not_found", field=field)
    assert await api.runtime.tasks.page() == []


async def test_several_mistakes_are_told_at_once(api: Api) -> None:
    answer = await api.generate({"text": "a", "params": {"steps": 0, "cfg_scale": -1}, "colour": 1})
    answer.refused(400, "invalid_request")
    assert {error["field"] for error in answer.json["errors"]} == {"params.steps", "params.cfg_scale", "colour"}


@pytest.mark.parametrize(
    ("body", "says"),
    [(b"", "the body is empty"), (b"{", "not JSON"), (b"[]", "must be a JSON object"), (b"\xff", "not JSON")],
)
async def test_what_is_no_json_object_is_refused(api: Api, body: bytes, says: str) -> None:
    assert says in (await api.generate(body)).refused(400, "invalid_request")


async def test_a_body_over_the_limit_is_refused_with_the_limit(serve: Serve) -> None:
    async with serve(max_request_bytes=10_000) as api:
        message = (await api.generate({"text": "a" * 20_000})).refused(413, "too_large")
    assert "10000 bytes" in message


async def test_a_task_too_long_for_its_message_is_refused_before_it_is_stored(serve: Serve) -> None:
    async with serve(max_prompt_chars=60_000, max_message_bytes=20_000) as api:
        message = (await api.generate({"text": "a" * 30_000})).refused(413, "too_large")
        assert "shorten text" in message
        assert await api.runtime.tasks.page() == []


async def test_the_same_key_is_the_same_task(api: Api) -> None:
    body = {"text": "a red apple", "idempotency_key": "order-1"}
    first = (await api.generate(body)).data["task_id"]
    again = await api.generate(body)
    assert again.data["task_id"] == first
    assert again.json["message"] == "accepted before"
    by_header = await api.generate({"text": "a red apple"}, headers={"Idempotency-Key": "order-1"})
    assert by_header.data["task_id"] == first
    assert "differs from the first one" in by_header.data["notes"][0]
    both = await api.generate(body, headers={"Idempotency-Key": "order-2"})
    both.refused(400, "invalid_request", field="idempotency_key")


async def test_fifty_at_once_with_one_key_make_one_task(api: Api) -> None:
    body = {"text": "a red apple", "idempotency_key": "order-1"}
    answers = await asyncio.gather(*(api.generate(body) for _ in range(50)))
    assert len({answer.data["task_id"] for answer in answers}) == 1
    assert sorted(answer.json["message"] for answer in answers)[:2] == ["accepted", "accepted before"]
    assert len(await api.runtime.tasks.page()) == 1


async def test_a_full_service_says_when_to_come_again(serve: Serve) -> None:
    async with serve(max_queued=2) as api:
        await api.submitted()
        await api.submitted()
        answer = await api.generate()
        assert "2 tasks are waiting" in answer.refused(429, "overloaded")
        assert int(answer.headers["Retry-After"]) > 0
        assert len(await api.runtime.tasks.page()) == 2


async def test_without_the_database_nothing_is_half_done(
    api: Api, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"text": "a red apple", "idempotency_key": "order-1"}
    first = await api.submitted()
    offered: list[str] = []
    monkeypatch.setattr(api.runtime.outbox, "offer", lambda row: offered.append(row.id))
    with monkeypatch.context() as away:
        for name in ("read", "write", "ping", "now"):
            away.setattr(type(api.runtime.database), name, _away)
        answer = await api.generate(body)
        answer.refused(503, "unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    assert ([row.id for row in await api.runtime.tasks.page()], offered) == ([first], [])
    again = await api.generate(body)
    assert (again.json["message"], offered) == ("accepted", [again.data["task_id"]])


async def _away(*_: Any, **__: Any) -> Any:
    raise Unavailable("the database does not answer", retry_after=5)


async def test_a_database_that_was_away_at_the_first_submit_is_asked_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it took to find out that it is away."""
    monkeypatch.setattr(census, "SHARE", 1e9)
    monkeypatch.setattr(census, "FRESH", 0.01)
    with monkeypatch.context() as away:
        away.setattr(type(api.runtime.database), "read", _away)
        (await api.generate()).refused(503, "unavailable")
    async with asyncio.timeout(10):
        while (await api.generate()).status != 200:
            await asyncio.sleep(0.01)


async def test_loras_reach_the_row_by_either_form(api: Api) -> None:
    for name in ("ink", "glow"):
        await api.runtime.registry.add_lora(LoraRow(name, "1", "sd15", "package:", name))
    await api.runtime.registry.add_lora(LoraRow("wide", "1", "sdxl", "package:", "wide"))
    one = await api.submitted(params={"lora_name": "ink", "lora_weight": 0.6})
    two = await api.submitted(params={"loras": [{"name": "ink"}, {"name": "glow", "weight": -1}]})
    rows = [await api.runtime.tasks.get(task_id) for task_id in (one, two)]
    assert [[(lora.name, lora.weight) for lora in row.params.loras] for row in rows if row] == [
        [("ink", 0.6)],
        [("ink", 1.0), ("glow", -1.0)],
    ]
    wrong = await api.generate({"text": "a", "params": {"lora_name": "wide"}})
    assert "fits models of family sdxl" in wrong.refused(422, "does_not_fit", field="loras")
    unknown = await api.generate({"text": "a", "params": {"lora_name": "inc"}})
    assert "did you mean ink?" in unknown.refused(404, "not_found", field="loras")


async def test_a_recipe_of_other_weights_is_refused(api: Api) -> None:
    origin = {"model": {"name": "pocket", "digest": "ab" * 32}}
    answer = await api.generate({"text": "a", "provenance": origin})
    assert "leave provenance out" in answer.refused(409, "conflict", field="provenance")
    assert await api.runtime.tasks.page() == []


async def test_a_model_that_nobody_serves_is_refused(serve: Serve) -> None:
    async with serve(families=("sdxl",)) as api:
        answer = await api.generate({"text": "a", "params": {"model": "pocket"}})
        assert "no worker here serves (STREAMAPP_FAMILIES: sdxl)" in answer.refused(
            400, "invalid_request", field="model"
        )


async def test_a_stopping_process_accepts_nothing(api: Api) -> None:
    api.app.closing.set()
    answer = await api.generate()
    assert "stopping" in answer.refused(503, "unavailable")
    assert "Retry-After" in answer.headers


async def test_pages_of_other_sites_cannot_submit(api: Api) -> None:
    answer = await api.generate(headers={"Origin": "https://evil.example"})
    assert "evil.example" in answer.refused(403, "forbidden")
    assert (await api.generate(headers={"Origin": api.url})).status == 200
    assert len(await api.runtime.tasks.page()) == 1
