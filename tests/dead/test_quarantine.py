"""A model that does not load: tried again, then drawn with the fallback, and left alone when it keeps failing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streamapp.cli import main
from streamapp.db import LoraRow, ModelRow, Registry, State, TaskRow
from streamapp.engine.errors import EngineError
from streamapp.models import quarantine
from streamapp.models.cache import EVICTED
from streamapp.models.quarantine import FAILURES, LIMIT, QUARANTINED
from streamapp.models.shipped import POCKET
from streamapp.models.verified import DamagedWeights
from streamapp.retry import FallBack, Park, Retry, decide
from streamapp.settings import load_settings
from streamapp.worker.loading import LoadFailed, loading
from streamapp.worker.preparing import most_used
from tests.dead.test_fallback import OTHER, gone, submit, with_other
from tests.web.conftest import Api
from tests.worker.conftest import Bench

CAUSE = EngineError("load_failed", "pocket: unet.conv_in.weight is missing")
INK = LoraRow("ink", "1", "sd15", "package:", "pocket")


def broken(row: ModelRow | LoraRow = POCKET, cause: Any = CAUSE) -> LoadFailed:
    """A load that failed."""
    return LoadFailed(row, cause)


async def pocket(registry: Registry) -> ModelRow:
    """The row of the model that ships."""
    row = await registry.model("pocket")
    assert row is not None
    return row


async def waits(bench: Bench, task_id: str) -> bool:
    row = await bench.row(task_id)
    return row.state is State.QUEUED and row.not_before is not None


async def test_a_load_that_failed_is_tried_again_later_and_counted(bench: Bench) -> None:
    bench.drawing.failures["t1"] = [broken()]
    await bench.submit("t1")
    await bench.until(lambda: waits(bench, "t1"))
    row = await bench.row("t1")
    assert (row.attempts, row.history[0]["code"], row.history[0]["name"]) == (1, "load_failed", "pocket")
    assert (await pocket(Registry(bench.database))).traits[FAILURES] == 1


async def test_what_fails_again_and_again_is_drawn_with_the_fallback_and_left_alone(bench: Bench) -> None:
    registry = Registry(bench.database)
    for number in range(LIMIT):
        bench.drawing.failures[f"f{number}"] = [broken()]
        await bench.submit(f"f{number}", max_attempts=1)
        assert await bench.ended(f"f{number}") == {f"f{number}": State.FAILED}
    facts = (await pocket(registry)).traits[QUARANTINED]
    assert (facts["code"], facts["message"], facts["failures"]) == ("load_failed", CAUSE.message, LIMIT)
    before = list(bench.drawing.orders)
    await bench.submit("late")
    assert await bench.ended("late") == {"late": State.FAILED}
    error = (await bench.row("late")).error or {}
    assert (error["code"], bench.drawing.orders) == ("quarantined", before), "it was drawn with all the same"
    assert CAUSE.message in error["message"]
    # Whoever named another one has it at once.
    await submit(bench, with_other(), max_attempts=3)
    await bench.until(lambda: gone(bench))
    bench.deliver(await bench.row("t1"))
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    [image] = (await bench.tasks.images(["t1"]))["t1"]
    assert image.recipe["provenance"]["instead_of"]["model"] == "pocket"
    assert "quarantined" in image.recipe["provenance"]["notes"][0]


async def test_the_last_try_of_a_task_is_its_fallback(bench: Bench) -> None:
    bench.drawing.failures["t1"] = [broken()]
    await submit(bench, with_other(), max_attempts=1)
    await bench.until(lambda: gone(bench))
    row = await bench.row("t1")
    assert (row.model, row.history[0]["code"]) == ("other", "load_failed")


def test_damage_and_loras_are_decided_otherwise() -> None:
    assert isinstance(decide(broken(), 1, 3, fallback=True), Retry)
    assert isinstance(decide(broken(), 3, 3, fallback=True), FallBack)
    # Every byte was read: another try would read the same.
    assert isinstance(decide(broken(cause=DamagedWeights("bad")), 1, 3, fallback=True), FallBack)
    # The fallback draws with the same LoRA or ControlNet.
    assert isinstance(decide(broken(INK), 3, 3, fallback=True), Park)
    assert isinstance(decide(broken(replace(INK, traits={"kind": "controlnet"})), 3, 3, fallback=True), Park)


def test_failures_of_others_are_not_the_files() -> None:
    for code in ("engine_closed", "engine_crashed", "unknown_model", "incompatible_lora"):
        with pytest.raises(EngineError) as caught, loading(POCKET):
            raise EngineError(code, "not the file")
        assert caught.value.code == code
    with pytest.raises(LoadFailed) as failed, loading(POCKET):
        raise CAUSE
    assert (failed.value.code, failed.value.retryable, failed.value.details["field"]) == ("load_failed", True, "model")


async def test_a_load_that_succeeds_forgets_the_failures_before_it(bench: Bench) -> None:
    registry = Registry(bench.database)
    for _ in range(LIMIT - 1):
        await quarantine.failed(registry, POCKET, CAUSE)
    await quarantine.worked(registry, await pocket(registry))
    await quarantine.failed(registry, POCKET, CAUSE)
    row = await pocket(registry)
    assert (row.traits[FAILURES], QUARANTINED in row.traits) == (1, False)
    assert {**row.traits, FAILURES: None} == {**POCKET.traits, FAILURES: None}, "what else the row says is lost"


async def test_failures_that_two_workers_note_at_once_are_both_counted(bench: Bench) -> None:
    registry = Registry(bench.database)
    await asyncio.gather(*(quarantine.failed(registry, POCKET, CAUSE) for _ in range(LIMIT)))
    assert QUARANTINED in (await pocket(registry)).traits


def test_nobody_loads_it_ahead_and_what_is_not_here_may_come_anew() -> None:
    bad = replace(OTHER, last_used_at=9, traits={QUARANTINED: {"failures": 3, "message": "no"}})
    assert most_used([bad, POCKET]) == ["pocket"]
    assert quarantine.why(bad) is not None
    assert quarantine.why(replace(bad, traits={**bad.traits, EVICTED: True})) is None


# At submit, in lists, and away with it.
async def put_away(api: Api, row: ModelRow | LoraRow) -> None:
    registry = api.runtime.registry
    await (registry.add_lora(row) if isinstance(row, LoraRow) else registry.add_model(row))
    for _ in range(LIMIT):
        await quarantine.failed(registry, row, CAUSE)
    api.runtime.shelf.forget()


async def drawn(api: Api, **given: Any) -> TaskRow:
    row = await api.runtime.tasks.get(await api.submitted(params=given))
    assert row is not None
    return row


async def test_a_request_for_it_is_refused_with_the_reason_or_drawn_with_its_fallback(api: Api) -> None:
    await put_away(api, OTHER)
    answer = await api.generate({"text": "a", "params": {"model": "other"}})
    message = answer.refused(409, "quarantined", field="model")
    assert "failed to load 3 times in a row" in message
    assert CAUSE.message in message
    assert "models verify other" in message
    asked = {"text": "a", "params": {"model": "other", "fallback_model": "pocket"}}
    said = (await api.generate(asked)).data
    assert "drawn with pocket instead of other: in quarantine" in said["notes"][-1]
    shown = (await api.get(f"/api/v1/image/task/{said['task_id']}")).data
    assert (shown["model"], shown["instead_of"]["model"], shown["status"]) == ("pocket", "other", "queued")
    wrong = await api.generate({"text": "a", "params": {"model": "pocket", "fallback_model": "other"}})
    assert "other is in quarantine" in wrong.refused(400, "invalid_request", field="fallback_model")
    await put_away(api, INK)
    lora = await api.generate({"text": "a", "params": {"lora_name": "ink", "fallback_model": "other"}})
    lora.refused(409, "quarantined", field="loras")


async def run(*words: str) -> Result:
    """A command in a thread: it runs an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, main, words)


async def test_lists_say_why_and_release_and_verify_lift_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = api.app.settings
    monkeypatch.setenv("STREAMAPP_DATA_DIR", str(settings.data_path))
    monkeypatch.setenv("STREAMAPP_PORT", "9")
    assert load_settings().data_path == settings.data_path
    for lift in ("release", "verify"):
        await put_away(api, POCKET)
        listed = {row["name"]: row for row in (await api.get("/api/v1/models")).data["models"]}
        assert (listed["pocket"]["state"], listed["pocket"]["quarantined"]["message"]) == ("quarantined", CAUSE.message)
        assert (await api.get("/api/v1/models/pocket")).data["state"] == "quarantined"
        result = await run("models", "list")
        assert "quarantined" in result.stdout
        assert f"pocket failed to load 3 times: {CAUSE.message}" in result.stderr
        result = await run("models", lift, "pocket")
        assert (result.exit_code, "released" in result.stdout) == (0, True), result.output
        api.runtime.shelf.forget()
        assert (await drawn(api, model="pocket")).model == "pocket"
    assert "was not in quarantine" in (await run("models", "release", "pocket")).stdout
