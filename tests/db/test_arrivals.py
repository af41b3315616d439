"""Tasks that wait for weights, on each database."""

from __future__ import annotations

from streamapp.db import Arrivals, Claims, Database, Delivery, LoraRow, ModelRow, Registry, State, TaskRow, Tasks
from streamapp.db.rows import EVICTED
from streamapp.generation import LoraRef
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


async def test_a_replay_of_a_task_whose_weights_are_not_here_waits_for_them_again(
    database: Database, tasks: Tasks, registry: Registry, delivery: Delivery
) -> None:
    away = ModelRow("dream", "1", "sd15", "file:", "models/dream.safetensors", traits={EVICTED: True})
    await registry.add_model(away)
    await registry.add_lora(LoraRow("ink", "1", "sd15", "file:", "loras/ink.safetensors"))
    await registry.add_lora(LoraRow("glow", "1", "sd15", "file:", "loras/glow.safetensors", traits={EVICTED: True}))
    dream = new("c").params.model_copy(update={"model": "dream"})
    glow = new("c").params.model_copy(update={"loras": (LoraRef(name="glow", weight=1.0),)})
    for task_id, params in (("a", dream), ("b", glow), ("c", new("c").params)):
        await tasks.insert(new(task_id, fetching=True, params=params, model=params.model))
    await Arrivals(database).failed(["a", "b", "c"], GONE)
    assert set((await tasks.replay_many(["a", "b", "c"])).values()) == {"replayed"}
    rows = [await seen(tasks, one) for one in "abc"]
    assert [(row.state, row.error, row.progress) for row in rows] == [
        (State.FETCHING, None, 0.0), (State.FETCHING, None, 0.0), (State.QUEUED, None, 0.0)
    ]  # fmt: skip
    assert [row.id for row in await delivery.due(10)] == ["c"]
    assert [row.id for row in await Arrivals(database).waiting(10)] == ["a", "b"]
    assert [entry["code"] for entry in rows[0].history] == ["not_found", "replayed"]
