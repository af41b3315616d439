"""Another model for what its own fails to draw: checked at submit, told in the answer and in the recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streamapp.broker.record import TP
from streamapp.db import LoraRow, NewTask, Registry, State
from streamapp.engine.errors import EngineError
from streamapp.generation import Fallback, GenerationParams, Size
from streamapp.models.families import FAMILIES
from streamapp.models.shipped import POCKET
from streamapp.settings import Settings
from streamapp.worker.backlog import Receipt
from tests.web.conftest import Api, Serve
from tests.worker.conftest import Bench
from tests.worker.support import message, params

OTHER = replace(POCKET, name="other", digest="ab" * 32)
SMALL = Size(width=128, height=128)


def with_other(**changes: Any) -> GenerationParams:
    fallback = Fallback(
        model="other", family="sd15", delivered=SMALL, drawn=Size(width=112, height=112), steps=2, guidance=2.0,
        sampler="DDIM",
    )  # fmt: skip
    return params(fallback=fallback, **changes)


async def submit(bench: Bench, drawn: GenerationParams, family: str = "sd15", max_attempts: int = 1) -> None:
    await Registry(bench.database).add_model(OTHER)
    new = NewTask(
        id="t1", user_id="local", idempotency_key=None, priority=2, family=family, model=drawn.model, params=drawn,
        request={}, cost=1.0, max_attempts=max_attempts,
    )  # fmt: skip
    bench.deliver((await bench.tasks.insert(new))[0])


async def gone(bench: Bench) -> bool:
    return len(bench.worker.backlog) == 0


async def test_what_its_model_cannot_draw_is_drawn_by_the_fallback_and_the_recipe_says_why(bench: Bench) -> None:
    bench.drawing.failures["t1"] = [EngineError("not_finite", "the picture came out as not-a-number")]
    await submit(bench, with_other())
    await bench.until(lambda: gone(bench))
    row = await bench.row("t1")
    assert (row.state, row.model, row.attempts, row.params.model) == (State.QUEUED, "other", 0, "other")
    assert row.produce_at is not None
    assert [(entry["code"], entry["next_model"]) for entry in row.history] == [("not_finite", "other")]
    bench.deliver(row)
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    [image] = (await bench.tasks.images(["t1"]))["t1"]
    provenance = image.recipe["provenance"]
    assert provenance["model"] == {"name": "other", "digest": OTHER.digest}
    assert provenance["drawn_at"] == "112x112"
    assert provenance["instead_of"] == {"model": "pocket", "family": "sd15", "reason": "not_finite: not retryable"}
    assert provenance["notes"] == ["drawn with other instead of pocket: not_finite: not retryable"]
    assert image.recipe["params"]["model"] == "other"
    assert bench.letters == []


async def test_a_fallback_that_fails_too_ends_in_the_dead_letters_with_both_failures(bench: Bench) -> None:
    bench.drawing.failures["t1"] = [EngineError("not_finite", "one"), EngineError("load_failed", "two")]
    await submit(bench, with_other())
    await bench.until(lambda: gone(bench))
    bench.deliver(await bench.row("t1"))
    assert await bench.ended("t1") == {"t1": State.FAILED}
    [letter] = bench.letters
    assert [entry["code"] for entry in letter.history] == ["not_finite", "load_failed"]


async def test_a_model_that_is_gone_is_replaced_without_another_try(bench: Bench) -> None:
    await submit(bench, with_other(model="missing"), max_attempts=3)
    await bench.until(lambda: gone(bench))
    row = await bench.row("t1")
    assert (row.model, row.params.instead_of and row.params.instead_of.model) == ("other", "missing")
    assert bench.drawing.orders == []


async def test_an_old_message_of_a_task_that_went_to_another_family_is_left_to_its_workers(bench: Bench) -> None:
    acked: list[int] = []
    moved = with_other().fall_back("engine_crashed: failed 3 of 3 attempts").model_copy(update={"family": "flux"})
    new = NewTask(
        id="t1", user_id="local", idempotency_key=None, priority=2, family="flux", model="other", params=moved,
        request={}, cost=1.0, max_attempts=3,
    )  # fmt: skip
    await bench.tasks.insert(new)
    bench.worker.receive(message("t1"), Receipt(TP("sd15_tasks", 0), 5, lambda: acked.append(5)), 0.0)
    await bench.until(lambda: gone(bench))
    row = await bench.row("t1")
    assert (row.state, row.attempts, acked, bench.drawing.orders) == (State.QUEUED, 0, [5], [])


# At submit.
async def register(api: Api, **changes: Any) -> None:
    await api.runtime.registry.add_model(replace(OTHER, **changes))


async def params_of(api: Api, **given: Any) -> GenerationParams:
    row = await api.runtime.tasks.get(await api.submitted(params={"model": "pocket", **given}))
    assert row is not None
    return row.params


async def test_a_request_names_its_fallback_and_keeps_what_it_said_itself(api: Api) -> None:
    await register(api, traits={**POCKET.traits, "steps": 9, "guidance": 1.5})
    drawn = await params_of(api, fallback_model="other", steps=5)
    assert drawn.fallback is not None
    assert (drawn.model, drawn.fallback.model) == ("pocket", "other")
    assert (drawn.fallback.steps, drawn.fallback.guidance, drawn.guidance) == (5, 1.5, 3.0)
    task_id = await api.submitted(params={"model": "pocket", "fallback_model": "other"})
    shown = (await api.get(f"/api/v1/image/task/{task_id}")).data
    assert (shown["fallback_model"], shown["instead_of"]) == ("other", None)


@pytest.mark.parametrize("name", ["nothing", "pocket"])
async def test_a_fallback_that_cannot_be_one_is_refused(api: Api, name: str) -> None:
    answer = await api.generate({"text": "x", "params": {"model": "pocket", "fallback_model": name}})
    assert answer.refused(400, "invalid_request", field="fallback_model").startswith("fallback_model: ")


async def test_a_fallback_must_draw_the_size_where_the_size_is_strict(api: Api) -> None:
    await register(api, traits={**POCKET.traits, "min_side": 128})
    body = {"model": "pocket", "fallback_model": "other", "resolution": "112x112", "strict_size": True}
    answer = await api.generate({"text": "x", "params": body})
    assert "112x112" in answer.refused(400, "invalid_request", field="fallback_model")


async def test_a_fallback_of_another_family_must_fit_the_loras(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamapp.models.families.FAMILIES", dict.fromkeys(("sd15", "sdxl"), FAMILIES["sd15"]))
    async with serve(families=("sd15", "sdxl")) as api:
        await register(api, family="sdxl")
        await api.runtime.registry.add_lora(LoraRow("ink", "1", "sd15", "package:", "pocket"))
        body = {"model": "pocket", "fallback_model": "other", "lora_name": "ink"}
        answer = await api.generate({"text": "x", "params": body})
        assert "LoRA ink fits family sd15" in answer.refused(400, "invalid_request", field="fallback_model")
        drawn = await params_of(api, fallback_model="other")
        assert drawn.fallback is not None
        assert drawn.fallback.family == "sdxl"


async def test_a_setting_or_the_model_names_one_and_a_request_may_refuse_it(serve: Serve) -> None:
    async with serve(fallback_models=("sd15=other",)) as api:
        assert (await params_of(api)).fallback is None, "not registered: left out, not refused"
    async with serve(fallback_models=("sd15=other",)) as api:
        await register(api)
        fallback = (await params_of(api)).fallback
        assert fallback is not None
        assert fallback.model == "other"
        assert (await params_of(api, fallback_model="none")).fallback is None
    async with serve() as api:
        await api.runtime.registry.add_model(replace(POCKET, traits={**POCKET.traits, "fallback_model": "other"}))
        fallback = (await params_of(api)).fallback
        assert fallback is not None
        assert fallback.model == "other"


@pytest.mark.parametrize("value", ["sd15", "sd15=", "=other", "sd15=a,sd15=b"])
def test_a_malformed_setting_stops_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAPP_FALLBACK_MODELS", value)
    with pytest.raises(ValueError, match="FAMILY=MODEL"):
        Settings()
