"""Tasks that wait for weights, on each database."""

from __future__ import annotations

from streamapp.db import Arrivals, Claims, Database, Delivery, State, TaskRow, Tasks
from tests.db.support import new

GONE = {"code": "not_found", "message": "the site has no such file", "retryable": False}


async def seen(tasks: Tasks, task_id: str) -> TaskRow:
    """The row of a task."""
    row = await tasks.get(task_id)
    assert row is not None
    return row


async def test_nobody_produces_or_claims_what_waits_until_it_has_arrived(
    database: Database, tasks: Tasks, claims: Claims, delivery: Delivery
) -> None:
    arrivals = Arrivals(database)
    for task_id in ("b", "a"):
        await tasks.insert(new(task_id, fetching=True))
    await tasks.insert(new("other"))
    assert [row.id for row in await arrivals.waiting(10)] == ["a", "b"]
    assert [row.id for row in await arrivals.waiting(1)] == ["a"]
    assert [row.id for row in await delivery.due(10)] == ["other"]
    assert await claims.claim(["a"], "w", 15) == []
    assert await delivery.requeue(["a"]) == 0
    await arrivals.beat({"a": 0.25, "b": 0.5, "other": 0.75})
    assert [(await seen(tasks, one)).progress for one in ("a", "b", "other")] == [0.25, 0.5, 0.0]
    await arrivals.arrived(["a"])
    row = await seen(tasks, "a")
    assert (row.state, row.progress, row.version) == (State.QUEUED, 0.0, 3)
    assert {row.id for row in await delivery.due(10)} == {"a", "other"}
    assert [row.id for row in await claims.claim(["a", "b"], "w", 15)] == ["a"]


async def test_what_cannot_be_had_ends_its_tasks_once_with_an_event(
    database: Database, tasks: Tasks, delivery: Delivery
) -> None:
    arrivals = Arrivals(database)
    await tasks.insert(new("a", fetching=True))
    await tasks.insert(new("queued"))
    before = len(await delivery.events(10))
    for _ in range(2):
        await arrivals.failed(["a", "queued"], GONE)
    assert (await seen(tasks, "a")).error == GONE
    assert [(await seen(tasks, one)).state for one in ("a", "queued")] == [State.FAILED, State.QUEUED]
    assert len(await delivery.events(10)) == before + 1


async def test_a_fallback_is_queued_only_while_its_task_waits(database: Database, tasks: Tasks) -> None:
    arrivals = Arrivals(database)
    for task_id in ("a", "b"):
        await tasks.insert(new(task_id, fetching=True))
    await tasks.cancel("b")
    other = new("a").params.model_copy(update={"model": "second"})
    for task_id in ("a", "b"):
        await arrivals.fall_back(task_id, other, 2.5, GONE)
    row = await seen(tasks, "a")
    assert (row.state, row.model, row.params.model, row.cost) == (State.QUEUED, "second", "second", 2.5)
    assert row.history[0]["code"] == "not_found"
    assert (await seen(tasks, "b")).state is State.CANCELLED


async def test_a_waiting_task_keeps_what_it_names_from_being_deleted(tasks: Tasks) -> None:
    one = new("a")
    assert not await tasks.naming("model", one.params.model)
    await tasks.insert(new("a", fetching=True))
    assert await tasks.naming("model", one.params.model)
