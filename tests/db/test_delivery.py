"""The outbox's side: what is due, in order; events; webhooks; who does it; what got lost."""

from __future__ import annotations

import asyncio

import orjson

from streamapp.db import Claims, Database, Delivery, Lost, Produced, State, Tasks
from tests.db.support import claim, end, force, new, shift, statements, tokens


async def test_due_tasks_come_by_priority_and_age(tasks: Tasks, delivery: Delivery, database: Database) -> None:
    for name, priority, age in (("a", 2, 10), ("b", 2, 30), ("c", 0, 5), ("d", 3, 99), ("e", 0, 20), ("f", 1, 1)):
        await tasks.insert(new(name, priority=priority))
        await shift(database, name, submitted_at=-age * 1000, produce_at=-age * 1000)
    await tasks.insert(new("later", priority=0, produce_delay_ms=60_000))
    assert [row.id for row in await delivery.due(100)] == ["e", "c", "f", "b", "a", "d"]
    assert [row.id for row in await delivery.due(4)] == ["e", "c", "f", "b"]


async def test_a_due_task_is_the_whole_row(tasks: Tasks, delivery: Delivery) -> None:
    row, _ = await tasks.insert(new("t1"))
    assert await delivery.due(1) == [row]


async def test_what_is_produced_knows_its_place_and_is_not_due_again(
    tasks: Tasks, delivery: Delivery, database: Database
) -> None:
    ids = [f"t{i:02}" for i in range(50)]
    await asyncio.gather(*(tasks.insert(new(task_id)) for task_id in ids))
    with statements(database) as sent:
        await delivery.mark_produced([Produced(task_id, "sd15_tasks", i % 4, 100 + i) for i, task_id in enumerate(ids)])
    assert len(sent) == 1
    assert await delivery.due(100) == []
    rows = {row.id: row for row in await tasks.page(limit=100)}
    assert [(rows[i].topic, rows[i].partition, rows[i].offset) for i in ids] == [
        ("sd15_tasks", i % 4, 100 + i) for i in range(50)
    ]
    assert {row.state for row in rows.values()} == {State.QUEUED}


async def test_a_place_is_noted_also_when_a_worker_was_faster(tasks: Tasks, claims: Claims, delivery: Delivery) -> None:
    await tasks.insert(new("t1"))
    await claim(claims, "t1")
    assert await delivery.due(5) == []
    await delivery.mark_produced([Produced("t1", "sd15_tasks", 0, 5)])
    row = await tasks.get("t1")
    assert row is not None
    assert (row.state, row.produce_at, row.offset) == (State.RUNNING, None, 5)


async def test_a_late_mark_does_not_swallow_a_retry(tasks: Tasks, claims: Claims, delivery: Delivery) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    await claims.retry("t1", row.claim_token or "", 5, {"code": "x"})
    await delivery.mark_produced([Produced("t1", "sd15_tasks", 0, 5)])
    again = await tasks.get("t1")
    assert again is not None
    assert (again.produce_at, again.offset) == (again.not_before, None)


async def test_a_mark_changes_nothing_about_an_ended_task(tasks: Tasks, delivery: Delivery) -> None:
    await tasks.insert(new("t1"))
    await tasks.cancel("t1")
    ended = await tasks.get("t1")
    await delivery.mark_produced([Produced("t1", "sd15_tasks", 0, 5), Produced("nobody", "sd15_tasks", 0, 6)])
    assert await tasks.get("t1") == ended


async def test_events_stay_until_they_are_sent(tasks: Tasks, delivery: Delivery) -> None:
    for i in range(5):
        await tasks.insert(new(f"t{i}"))
    first = await delivery.events(3)
    assert [event.key for event in first] == ["t0", "t1", "t2"]
    assert await delivery.events(3) == first
    await delivery.mark_events_sent([event.seq for event in first])
    assert [event.key for event in await delivery.events(10)] == ["t3", "t4"]
    await delivery.mark_events_sent([event.seq for event in await delivery.events(10)])
    await tasks.insert(new("t9"))
    [event] = await delivery.events(10)
    # Numbers are never used again, else a slow sender could forget an event that it did not send.
    assert event.seq > max(sent.seq for sent in first) + 2


async def test_one_process_has_a_job_until_its_lease_runs_out(database: Database, delivery: Delivery) -> None:
    assert await delivery.lease("outbox", "p1", 30)
    assert await delivery.lease("outbox", "p1", 30)
    assert not await delivery.lease("outbox", "p2", 30)
    assert await delivery.lease("reconciler", "p2", 30)
    assert await delivery.lease("outbox", "p1", -1)
    assert await delivery.lease("outbox", "p2", 30)
    assert not await delivery.lease("outbox", "p1", 30)
    await delivery.release("outbox", "p1")
    assert not await delivery.lease("outbox", "p1", 30)
    await delivery.release("outbox", "p2")
    assert await delivery.lease("outbox", "p1", 30)


async def test_of_many_who_want_a_job_one_gets_it(delivery: Delivery) -> None:
    got = await asyncio.gather(*(delivery.lease("outbox", f"p{i}", 30) for i in range(20)))
    assert sum(got) == 1
    again = await asyncio.gather(*(delivery.lease("outbox", f"p{i}", 30) for i in range(20)))
    assert again == got


async def test_lost_candidates_are_produced_old_and_held_by_nobody(
    tasks: Tasks, claims: Claims, delivery: Delivery, database: Database
) -> None:
    names = ("fresh", "gone", "held", "marked", "pending", "retry", "zombie")
    for name in names:
        await tasks.insert(new(name))
    await delivery.mark_produced([Produced(n, "sd15_tasks", 1, i) for i, n in enumerate(names) if n != "pending"])
    [held, retry, _] = await claim(claims, "held", "retry", "zombie")
    await claims.retry("retry", retry.claim_token or "", 60, {"code": "x"})
    await tasks.cancel("gone")
    for name in names:
        await shift(database, name, submitted_at=0 if name == "fresh" else -100_000)
    await shift(database, "zombie", lease_until=-16_000)
    lost = await delivery.lost_candidates("", 10, 60)
    assert lost == [Lost("marked", "sd15_tasks", 1, 3), Lost("zombie", "sd15_tasks", 1, 6)]
    assert await delivery.lost_candidates("", 1, 60) == lost[:1]
    assert await delivery.lost_candidates("marked", 1, 60) == lost[1:]
    assert await delivery.requeue(["fresh", "gone", "held", "marked", "pending", "retry", "zombie"]) == 3
    # Oldest first again; the retry keeps its date, the held one its worker.
    assert {row.id for row in await delivery.due(10)} == {"fresh", "marked", "pending", "zombie"}
    zombie = await tasks.get("zombie")
    assert zombie is not None
    assert (zombie.state, zombie.attempts, zombie.claim_token, zombie.produce_at) == (
        State.QUEUED, 1, None, zombie.submitted_at,
    )  # fmt: skip
    assert await claims.renew(tokens([held]), 15) == set()


async def test_a_lost_task_that_shall_be_cancelled_ends(
    tasks: Tasks, claims: Claims, delivery: Delivery, database: Database
) -> None:
    await tasks.insert(new("t1"))
    await claim(claims, "t1")
    await tasks.cancel("t1")
    await shift(database, "t1", lease_until=-16_000)
    assert await delivery.requeue(["t1"]) == 0
    assert (await tasks.watch(["t1"]))["t1"].state is State.CANCELLED


async def test_a_webhook_is_held_delivered_delayed_or_given_up(
    tasks: Tasks, claims: Claims, delivery: Delivery, database: Database
) -> None:
    for name in ("t1", "t2", "t3"):
        await tasks.insert(new(name, callback_url=f"http://x/{name}"))
    rows = await claim(claims, "t1", "t2", "t3")
    await claims.finish([end(row) for row in rows])
    calls = await delivery.due_callbacks(10, 60)
    assert [(call.url, call.attempts, orjson.loads(call.body)["task_id"]) for call in calls] == [
        (f"http://x/{name}", 1, name) for name in ("t1", "t2", "t3")
    ]
    assert await delivery.due_callbacks(10, 60) == []
    await delivery.end_callback(calls[0].event_id)
    await delivery.delay_callback(calls[1].event_id, -1, "refused")
    await delivery.end_callback(calls[2].event_id, "gave up")
    again = await delivery.due_callbacks(10, 60)
    assert [(call.event_id, call.attempts) for call in again] == [(calls[1].event_id, 2)]


async def test_two_processes_never_deliver_the_same_webhook(
    tasks: Tasks, delivery: Delivery, database: Database
) -> None:
    for i in range(20):
        await tasks.insert(new(f"t{i:02}", callback_url="http://x/"))
        await tasks.cancel(f"t{i:02}")
    other = Delivery(database)
    both = await asyncio.gather(*(who.due_callbacks(5, 60) for who in (delivery, other, delivery, other)))
    ids = [call.event_id for calls in both for call in calls]
    assert len(ids) == len(set(ids))


async def test_replaying_makes_another_event_and_another_webhook(tasks: Tasks, delivery: Delivery) -> None:
    await tasks.insert(new("t1", callback_url="http://x/"))
    await tasks.cancel("t1")
    await tasks.replay("t1")
    await tasks.cancel("t1")
    assert [call.event_id for call in await delivery.due_callbacks(10, 60)] == ["t1:2", "t1:4"]


async def test_an_unproduced_task_with_a_forced_state_is_not_due(
    tasks: Tasks, delivery: Delivery, database: Database
) -> None:
    await tasks.insert(new("t1"))
    await force(database, "t1", {"state": "running", "lease_until": 1})
    assert await delivery.due(5) == []
