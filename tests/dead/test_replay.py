"""Topics read again: what failed or expired is queued once more, everything else is counted and left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
import structlog
from click.testing import CliRunner

from streamapp import topics
from streamapp.cli import main
from streamapp.db import State
from streamapp.dead import Replayed, parse_since, replay_since, replay_topics
from streamapp.errors import InvalidRequest
from streamapp.outbox import message_of
from streamapp.records import DeadLetter
from streamapp.settings import Settings
from tests.agents.conftest import Service, Start
from tests.web.conftest import Api, Serve


@pytest.fixture
def quiet() -> Iterator[None]:
    """A command in this process would catch the service's log in its output."""
    # Everything anew: another test may have left processors that ask the logger what only stdlib's can answer.
    structlog.configure(
        processors=[lambda *_: ""], wrapper_class=structlog.BoundLogger, logger_factory=structlog.ReturnLoggerFactory()
    )
    yield
    structlog.reset_defaults()


BOTH = ("sd15_tasks", "sd15_tasks_urgent")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90m", 1_000_000_000 - 5_400_000),
        ("1.5h", 1_000_000_000 - 5_400_000),
        ("30s", 1_000_000_000 - 30_000),
        ("20d", 0),
        ("1970-01-12T13:46:40Z", 1_000_000_000),
        ("1970-01-12T13:46:40", 1_000_000_000),
        ("1970-01-12T14:46:40+01:00", 1_000_000_000),
        ("1970-01-02", 86_400_000),
    ],
)
def test_a_time_is_a_date_or_a_span_back(text: str, wanted: int) -> None:
    assert parse_since(text, now=1_000_000.0) == wanted


@pytest.mark.parametrize("text", ["", "yesterday", "-5m", "5", "5y", "9" * 40 + "d"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(InvalidRequest, match="90m"):
        parse_since(text)


def test_only_task_topics_are_read() -> None:
    settings = Settings(families=("sd15",))
    assert replay_topics(settings) == list(BOTH)
    assert replay_topics(settings, ["sd15_tasks"]) == ["sd15_tasks"]
    with pytest.raises(InvalidRequest, match="known: sd15_tasks"):
        replay_topics(settings, ["worker_status"])


async def filled(service: Service) -> dict[str, str]:
    """A task for each way to end, some with two messages, and messages that nobody can read; ids by what they are."""
    runtime = service.app.runtime
    ids = {name: f"t-{name}" for name in ("succeeded", "failed", "cancelled", "dropped")}
    service.drawing.failures = {ids[name]: [InvalidRequest("no")] for name in ("failed", "dropped")}
    service.drawing.gate.clear()
    await service.deliver(*ids.values())
    await runtime.tasks.cancel(ids["cancelled"])
    service.drawing.gate.set()
    await service.ended(*ids.values())
    assert await runtime.letters.drop([ids["dropped"]]) == {ids["dropped"]: "dropped"}
    row = await runtime.tasks.get(ids["failed"])
    assert row is not None
    await service.app.produce("sd15_tasks_urgent", 0, b"again", message_of(row).encode())
    await service.app.produce("sd15_tasks", 0, b"stray", message_of(replace(row, id="t-nobody")).encode())
    await service.app.produce("sd15_tasks", 1, None, b"\xff")
    return ids


async def replayed(service: Service, since: int = 0, **given: bool) -> Replayed:
    runtime = service.app.runtime
    return await replay_since(runtime.admin, runtime.tasks, BOTH, since, **given)


async def state(service: Service, task_id: str) -> State:
    return (await service.app.runtime.tasks.watch([task_id]))[task_id].state


async def test_failed_tasks_are_queued_again_and_drawn_once_whatever_else_is_on_the_topics(start: Start) -> None:
    async with start() as service:
        await service.ready()
        ids = await filled(service)
        wanted = Replayed(read=7, unreadable=1, tasks=5, requeued=1, succeeded=1, cancelled=1, dropped=1, missing=1)
        assert await replayed(service, dry_run=True) == wanted
        assert await state(service, ids["failed"]) is State.FAILED
        assert await replayed(service) == wanted
        assert await service.ended(ids["failed"]) == {ids["failed"]: State.SUCCEEDED}
        assert service.drawing.orders.count(ids["succeeded"]) == 1
        assert await state(service, ids["cancelled"]) is State.CANCELLED
        assert (await replayed(service, cancelled=True)).requeued == 1
        assert await service.ended(ids["cancelled"]) == {ids["cancelled"]: State.SUCCEEDED}
        assert (await replayed(service, since=2**41)).read == 0


async def test_the_command_asks_the_service_that_holds_the_embedded_log_and_reads_it_itself_when_none_does(
    start: Start, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    async with start() as service:
        await service.ready()
        await filled(service)
        monkeypatch.setenv("STREAMAPP_DATA_DIR", str(service.app.settings.data_path))
        monkeypatch.setenv("STREAMAPP_PORT", str(service.app.port))
        arguments = ["replay", "--since", "1h", "--dry-run", "--json"]
        running = await asyncio.to_thread(CliRunner().invoke, main, arguments)
        assert running.exit_code == 0, running.output
    stopped = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert stopped.exit_code == 0, stopped.output
    assert orjson.loads(stopped.stdout) == orjson.loads(running.stdout)
    assert orjson.loads(stopped.stdout)["requeued"] == 1


# The API and the commands over letters.
async def dead(api: Api) -> str:
    task_id = await api.submitted()
    await api.ended(task_id, State.FAILED, error={"code": "x", "message": "no", "reason": "x: not retryable"})
    return task_id


async def test_the_api_lists_shows_replays_and_drops(api: Api) -> None:
    first, second = await dead(api), await dead(api)
    await api.ended(await api.submitted())
    letters = "/api/v1/dead_letters"
    page = (await api.get(letters, params={"limit": "1"})).data
    rest = (await api.get(letters, params={"before": page["next_before"]})).data
    assert [letter["id"] for letter in [*page["letters"], *rest["letters"]]] == [second, first]
    shown = (await api.get(f"{letters}/{first}")).data
    assert (shown["reason"], shown["message"], shown["state"]) == ("x: not retryable", "no", "open")
    assert (await api.call("POST", f"{letters}/{first}/replay")).data["outcome"] == "replayed"
    assert "already replayed" in (await api.call("POST", f"{letters}/{first}/replay")).refused(409, "conflict")
    task = (await api.get(f"/api/v1/image/task/{first}")).data
    assert (task["status"], task["attempts"], task["error"]) == ("queued", 0, None)
    assert (await api.call("DELETE", f"{letters}/{second}")).data["outcome"] == "dropped"
    assert "already dropped" in (await api.call("DELETE", f"{letters}/{second}")).refused(409, "conflict")
    (await api.get(f"{letters}/nobody")).refused(404, "not_found")
    assert (await api.get(letters)).data["letters"] == []
    every = (await api.get(letters, params={"state": "all"})).data["letters"]
    assert {letter["id"]: letter["state"] for letter in every} == {first: "replayed", second: "dropped"}
    (await api.get(letters, params={"state": "gone"})).refused(400, "invalid_request", field="state")


async def test_a_user_sees_their_own_and_an_operator_everybody(serve: Serve) -> None:
    async with serve(api_keys=("ana:secret-one", "bob:secret-two"), operators=("bob",)) as api:
        ana, bob = ({"X-API-Key": key} for key in ("secret-one", "secret-two"))
        task_id = (await api.generate({"text": "x"}, headers=ana)).data["task_id"]
        await api.ended(task_id, State.FAILED, error={"code": "x", "message": "no"})
        letter = DeadLetter(topic="sd15_tasks", partition=0, offset=3, reason="empty", message="no value", at=1)
        await api.runtime.letters.keep(letter, 1e9)
        letters = "/api/v1/dead_letters"
        assert [x["id"] for x in (await api.get(letters, headers=ana)).data["letters"]] == [task_id]
        assert len((await api.get(letters, headers=bob)).data["letters"]) == 2
        (await api.get(f"{letters}/sd15_tasks:0:3", headers=ana)).refused(404, "not_found")
        assert (await api.get(f"{letters}/sd15_tasks:0:3", headers=bob)).data["raw"] is None
        unreadable = await api.call("POST", f"{letters}/sd15_tasks:0:3/replay", headers=bob)
        assert "nobody can read" in unreadable.refused(409, "conflict")
        (await api.call("POST", "/api/v1/replay", {"since": "1h"}, headers=ana)).refused(403, "operators_only")
        await api.runtime.admin.create_topics(topics.catalogue(api.app.settings))
        assert (await api.call("POST", "/api/v1/replay", {"since": "1h"}, headers=bob)).data["read"] == 0


@pytest.mark.parametrize(
    "body",
    [{}, {"since": 5}, {"since": "soon"}, {"since": "1h", "topics": "sd15_tasks"}, {"since": "1h", "dry_run": 1},
     {"since": "1h", "topics": ["worker_status"]}, {"since": "1h", "cancel": True}],
)  # fmt: skip
async def test_a_replay_that_is_not_clear_is_refused(api: Api, body: dict[str, Any]) -> None:
    (await api.call("POST", "/api/v1/replay", body)).refused(400, "invalid_request")


async def test_the_commands_work_on_the_database_and_over_http(
    api: Api, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    ids = [await dead(api) for _ in range(4)]
    monkeypatch.setenv("STREAMAPP_DATA_DIR", str(api.app.settings.data_path))

    async def run(*arguments: str, code: int = 0) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
        assert result.exit_code == code, result.output
        return result.stdout

    for url in ((), ("--url", api.url)):
        assert [row["id"] for row in orjson.loads(await run("dead", "list", "--json", *url))] == ids[::-1]
        assert orjson.loads(await run("dead", "show", ids[0], "--json", *url))["message"] == "no"
    assert ids[0] in await run("dead", "list")
    assert "not retryable" in await run("dead", "show", ids[0])
    assert await run("dead", "replay", ids[0]) == f"{ids[0]} replayed\n"
    assert await run("dead", "replay", ids[0], "nobody", "--url", api.url, code=1) == (
        f"{ids[0]} already replayed\nnobody missing\n"
    )
    assert await run("dead", "drop", ids[1], "--url", api.url) == f"{ids[1]} dropped\n"
    assert len((await run("dead", "drop", "--all")).splitlines()) == 2
    assert orjson.loads(await run("dead", "list", "--json")) == []
    assert "queued again" in await run("replay", ids[1])
    assert "left alone: queued" in await run("replay", ids[1], code=1)
    for wrong in (["dead", "drop"], ["replay"], ["replay", "x", "--since", "1h"], ["replay", "x", "--dry-run"]):
        await run(*wrong, code=2)
