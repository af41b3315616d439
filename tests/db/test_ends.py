"""How claimed work ends: finishes, retries, expiry and cancels, each fenced by the claim's token."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from streamapp.db import Cancel, Claims, Database, Delivery, State, TaskRow, Tasks
from tests.db.support import claim, end, force, new, picture, shift, statements, tokens


async def test_a_finish_brings_pictures_event_and_callback(
    tasks: Tasks, claims: Claims, delivery: Delivery, database: Database
) -> None:
    await tasks.insert(new("t1", callback_url="http://x/"))
    [row] = await claim(claims, "t1")
    pictures = [picture("t1", 0), picture("t1", 1)]
    before = await database.now()
    assert await claims.finish([end(row, images=pictures, timings={"denoise": 1.25})]) == {"t1": State.SUCCEEDED}
    ended = await tasks.get("t1")
    assert ended is not None
    assert (ended.state, ended.progress, ended.timings, ended.error) == (State.SUCCEEDED, 1.0, {"denoise": 1.25}, None)
    assert (ended.lease_until, ended.produce_at, ended.claimed_by) == (None, None, "w1")
    assert ended.ended_at is not None
    assert before <= ended.ended_at
    assert await tasks.images(["t1"]) == {"t1": pictures}
    event = (await delivery.events(10))[-1]
    body = orjson.loads(event.body)
    assert (body["event"], body["event_id"], body["at"], body["images"]) == ("succeeded", "t1:3", ended.ended_at, 1)
    [callback] = await delivery.due_callbacks(10, 60)
    assert callback.body == event.body


async def test_the_same_end_said_twice_counts_once(tasks: Tasks, claims: Claims, delivery: Delivery) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    assert await claims.finish([end(row), end(row)]) == {"t1": State.SUCCEEDED}
    assert await claims.finish([end(row)]) == {"t1": State.SUCCEEDED}
    assert await claims.finish([end(row, State.FAILED)]) == {"t1": State.SUCCEEDED}
    assert len(await delivery.events(10)) == 2
    assert len((await tasks.images(["t1"]))["t1"]) == 1


async def test_fifty_ends_are_a_handful_of_statements(tasks: Tasks, claims: Claims, database: Database) -> None:
    ids = [f"t{i:02}" for i in range(50)]
    await asyncio.gather(*(tasks.insert(new(task_id, callback_url="http://x/")) for task_id in ids))
    rows = await claim(claims, *ids)
    states = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
    ends = [end(row, states[i % 3], error={"code": f"e{i}"} if i % 3 == 1 else None) for i, row in enumerate(rows)]
    with statements(database) as sent:
        result = await claims.finish(ends)
    # Lock, end, pictures, events, callbacks.
    assert len(sent) == 7
    assert result == {row.id: states[i % 3] for i, row in enumerate(rows)}
    ended = {row.id: row for row in await tasks.page(limit=100)}
    assert {task_id: row.state for task_id, row in ended.items()} == result
    assert ended["t01"].error == {"code": "e1"}
    assert ended["t00"].error is None


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING])
async def test_a_worker_cannot_end_a_task_as_alive(state: State, tasks: Tasks, claims: Claims) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    with pytest.raises(ValueError, match="cannot end"):
        await claims.finish([end(row, state)])


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_an_ended_task_stays_as_it_is(
    state: State, tasks: Tasks, claims: Claims, delivery: Delivery, database: Database
) -> None:
    await tasks.insert(new("t1", deadline_ms=1))
    await force(database, "t1", {"deadline_at": None})
    [row] = await claim(claims, "t1")
    await force(database, "t1", {"deadline_at": 1})
    await claims.finish([end(row, state)])
    ended = await tasks.get("t1")
    assert ended is not None
    assert await claims.claim(["t1"], "w2", 15) == []
    assert await claims.renew(tokens([row]), 15) == {"t1"}
    assert await claims.beat({"t1": (row.claim_token or "", 0.1)}) == set()
    assert await claims.hand_back(tokens([row])) == set()
    assert not await claims.retry("t1", row.claim_token or "", 0, {"code": "x"})
    assert await claims.expire(["t1"]) == set()
    assert await delivery.requeue(["t1"]) == 0
    assert (await tasks.cancel("t1")).outcome == "ended"
    assert await tasks.get("t1") == ended


async def test_a_queued_task_cannot_be_finished_renewed_or_retried(tasks: Tasks, claims: Claims) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    await claims.hand_back(tokens([row]))
    queued = await tasks.get("t1")
    assert await claims.finish([end(row)]) == {"t1": None}
    assert await claims.renew(tokens([row]), 15) == {"t1"}
    assert not await claims.retry("t1", row.claim_token or "", 0, {"code": "x"})
    assert await tasks.get("t1") == queued


async def test_a_retry_waits_and_is_produced_when_due(
    tasks: Tasks, claims: Claims, delivery: Delivery, database: Database
) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    assert await claims.retry("t1", row.claim_token or "", 5, {"code": "oom", "message": "no memory"})
    again = await tasks.get("t1")
    assert again is not None
    assert (again.state, again.attempts, again.claimed_by, again.started_at) == (State.QUEUED, 1, None, None)
    assert again.not_before is not None
    assert again.produce_at == again.not_before
    assert [(item["attempt"], item["worker_id"], item["code"]) for item in again.history] == [(1, "w1", "oom")]
    assert await claims.claim(["t1"], "w2", 15) == []
    assert await delivery.due(5) == []
    assert 0 < (await claims.glimpse(["t1"]))["t1"].not_before_ms <= 5_000
    await shift(database, "t1", not_before=-6_000, produce_at=-6_000)
    assert [task.id for task in await delivery.due(5)] == ["t1"]
    [second] = await claim(claims, "t1", worker="w2")
    assert (second.attempts, second.not_before) == (2, None)
    assert await claims.retry("t1", second.claim_token or "", 0, {"code": "oom2"})
    last = await tasks.get("t1")
    assert last is not None
    assert [item["code"] for item in last.history] == ["oom", "oom2"]


async def test_a_task_past_its_deadline_expires_and_is_not_claimed(
    tasks: Tasks, claims: Claims, delivery: Delivery, database: Database
) -> None:
    for name, deadline in (("t1", 1_000), ("t2", 60_000), ("t3", None), ("t4", 1_000), ("t5", 1_000)):
        await tasks.insert(new(name, deadline_ms=deadline, callback_url="http://x/"))
    rows = await claim(claims, "t4", "t5")
    for name in ("t1", "t2", "t4", "t5"):
        await shift(database, name, deadline_at=-2_000)
    await shift(database, "t5", lease_until=-16_000)
    assert [row.id for row in await claims.claim(["t1", "t2", "t5"], "w1", 15)] == ["t2"]
    # t4 is being drawn: its worker decides.
    assert await claims.expire(["t1", "t2", "t3", "t4", "t5", "nobody"]) == {"t1", "t5"}
    row = await tasks.get("t1")
    assert row is not None
    assert row.state is State.EXPIRED
    assert row.error is not None
    assert row.error["code"] == "expired"
    assert await claims.finish([end(rows[0]), end(rows[1])]) == {"t4": State.SUCCEEDED, "t5": None}
    assert {callback.task_id for callback in await delivery.due_callbacks(10, 60)} == {"t1", "t4", "t5"}


async def test_what_is_overdue_is_found_wherever_its_message_is(
    tasks: Tasks, delivery: Delivery, database: Database
) -> None:
    for i in range(4):
        await tasks.insert(new(f"t{i}", deadline_ms=60_000))
    for i in range(3):
        await shift(database, f"t{i}", deadline_at=-100_000)
    assert await delivery.expire_overdue(2) == {"t0", "t1"}
    assert await delivery.expire_overdue(2) == {"t2"}
    assert await delivery.expire_overdue(2) == set()


async def test_cancel_and_finish_race_to_exactly_one_end(tasks: Tasks, claims: Claims, delivery: Delivery) -> None:
    ids = [f"t{i:02}" for i in range(30)]
    await asyncio.gather(*(tasks.insert(new(task_id)) for task_id in ids))
    rows = await claim(claims, *ids)

    async def race(row: TaskRow) -> tuple[Cancel, dict[str, State | None]]:
        return await asyncio.gather(tasks.cancel(row.id), claims.finish([end(row)]))

    for row, (cancelled, finished) in zip(rows, await asyncio.gather(*map(race, rows)), strict=True):
        after = await tasks.get(row.id)
        assert after is not None
        assert finished == {row.id: after.state}
        assert cancelled.outcome == ("cancelling" if after.state is State.CANCELLED else "ended")
        assert len((await tasks.images([row.id]))[row.id]) == (0 if after.state is State.CANCELLED else 1)
    ends = [orjson.loads(event.body) for event in await delivery.events(100)][30:]
    assert sorted(event["task_id"] for event in ends) == ids


async def test_cancel_and_claim_race_to_exactly_one_owner(tasks: Tasks, claims: Claims) -> None:
    ids = [f"t{i:02}" for i in range(30)]
    await asyncio.gather(*(tasks.insert(new(task_id)) for task_id in ids))

    async def race(task_id: str) -> tuple[Cancel, list[TaskRow]]:
        return await asyncio.gather(tasks.cancel(task_id), claims.claim([task_id], "w1", 15))

    for cancelled, rows in await asyncio.gather(*map(race, ids)):
        assert (cancelled.outcome, len(rows)) in {("cancelled", 0), ("cancelling", 1)}
