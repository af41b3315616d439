"""Health, status and models: what operators and load balancers ask."""

from __future__ import annotations

import asyncio

import pytest

from streamapp.errors import Unavailable
from streamapp.runtime import Runtime
from tests.web.conftest import Api, Broken


async def test_alive_asks_nobody(api: Api, broken: Broken) -> None:
    broken()
    answer = await api.get("/healthz")
    assert (answer.status, answer.json) == (200, {"status": "alive"})


async def test_ready_names_what_does_not_answer(api: Api, broken: Broken) -> None:
    before = await api.get("/readyz")
    # In this test no stream application runs, and nobody has begun to load weights.
    assert {name for name, check in before.json["checks"].items() if not check["ok"]} == {"tables", "weights"}
    assert "not begun" in before.json["checks"]["weights"]["message"]
    preparing = api.runtime.preparing
    assert preparing is not None
    await preparing.run()
    assert (await api.get("/readyz")).json["checks"]["weights"]["ok"]
    broken()
    answer = await api.get("/readyz")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json["status"] == "not ready"
    assert answer.json["checks"]["database"]["message"] == "the database does not answer"
    assert answer.json["checks"]["storage"]["ok"]


async def test_ready_is_when_everything_answers(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fine() -> None:
        return None

    asked = 0

    def pings(_: Runtime) -> object:
        nonlocal asked
        asked += 1
        return {"database": fine}

    monkeypatch.setattr(Runtime, "pings", pings)
    answer = await api.get("/readyz")
    assert (answer.status, answer.json["status"]) == (200, "ready")

    async def silent() -> None:
        await asyncio.sleep(60)

    async def defective() -> None:
        raise KeyError("x")

    async def away() -> None:
        raise Unavailable("the broker is away")

    monkeypatch.setattr("web.health.PATIENCE", 0.05)
    monkeypatch.setattr(Runtime, "pings", lambda _: {"a": silent, "b": defective, "c": away, "d": fine})
    checks = (await api.get("/readyz")).json["checks"]
    assert [check["ok"] for check in checks.values()] == [False, False, False, True]
    assert checks["a"]["message"].startswith("no answer within")
    assert "the log has the details" in checks["b"]["message"]
    assert checks["c"]["message"] == "the broker is away"


async def test_a_stopping_process_is_not_ready(api: Api) -> None:
    api.app.closing.set()
    answer = await api.get("/readyz")
    assert (answer.status, answer.json["status"]) == (503, "stopping")


async def test_status_counts_tasks_by_model_and_state(api: Api) -> None:
    first = await api.submitted()
    await api.submitted()
    await api.claimed(first)
    data = (await api.get("/api/v1/status")).data
    assert data["queue"] == {"pocket": {"queued": 1, "running": 1}}
    assert data["service"]["worker_id"] == "up-1"
    assert data["service"]["families"] == ["sd15"]
    assert (data["workers"], data["throughput"]) == ([], [])


async def test_status_shows_what_it_knows_without_the_database(api: Api, broken: Broken) -> None:
    broken()
    data = (await api.get("/api/v1/status")).data
    assert data["queue"] is None
    assert data["service"]["tables_ready"] is False


@pytest.mark.parametrize("minutes", ["0", "1441", "x", "9999999"])
async def test_status_refuses_a_time_that_is_not_kept(api: Api, minutes: str) -> None:
    assert "1 to 1440" in (await api.get(f"/api/v1/status?minutes={minutes}")).refused(400, "invalid_request")


async def test_models_say_what_a_request_may_leave_open(api: Api) -> None:
    data = (await api.get("/api/v1/models")).data
    [pocket] = data["models"]
    assert (pocket["name"], pocket["native"], pocket["max_side"]) == ("pocket", "128x128", 128)
    assert pocket["defaults"] == {"steps": 20, "cfg_scale": 3.0, "sampler": "DDIM"}
    assert {"Euler", "DPM++ 2M Karras", "Auto"} <= set(data["samplers"])
    assert data["families"] == ["sd15"]
    assert {"Karras", "Exponential", "SGM Uniform"} <= set(data["schedules"])
    for sampler in (*data["samplers"], *(f"Euler {schedule}" for schedule in data["schedules"])):
        assert (await api.generate({"text": "a", "params": {"sampler": sampler}})).status == 200, sampler
    for style in data["styles"]:
        assert (await api.generate({"text": "a", "params": {"style": style["name"]}})).status == 200, style


async def test_nothing_and_wrong_methods_are_told_in_our_form(api: Api) -> None:
    assert "/docs describes the API" in (await api.get("/api/v1/nothing")).refused(404, "not_found")
    answer = await api.call("PUT", "/api/v1/image/generate", {})
    assert "takes POST" in answer.refused(405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


async def test_a_defect_is_told_by_its_request_id(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def defective(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(api.runtime.tasks, "page", defective)
    answer = await api.get("/api/v1/image/tasks", headers={"X-Request-Id": "abc-1"})
    assert "request id abc-1" in answer.refused(500, "internal_error")
    assert b"secret" not in answer.body
    assert answer.headers["X-Request-Id"] == "abc-1"
