"""The worker's side: one claim at a time, leases, fenced ends."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from streamapp.db import Cancel, Claims, Database, Delivery, State, TaskRow, Tasks
from tests.db.support import claim, end, force, new, picture, shift, statements, tokens


async def test_a_claim_counts_as_an_attempt(tasks: Tasks, claims: Claims, database: Database) -> None:
    await tasks.insert(new("t1"))
    before = await database.now()
    [row] = await claims.claim(["t1", "nobody"], "w1", 15)
    assert row == await tasks.get("t1")
    assert (row.state, row.attempts, row.claimed_by, row.version) == (State.RUNNING, 1, "w1", 2)
    assert row.lease_until is not None
    assert row.started_at is not None
    assert before <= row.started_at <= row.lease_until - 15_000 + 50
    assert await claims.claim([], "w1", 15) == []


async def test_a_hundred_claims_are_two_statements(tasks: Tasks, claims: Claims, database: Database) -> None:
    ids = [f"t{i:03}" for i in range(100)]
    await asyncio.gather(*(tasks.insert(new(task_id)) for task_id in ids))
    with statements(database) as sent:
        rows = await claims.claim(ids[::-1], "w1", 15)
    assert [row.id for row in rows] == ids
    assert len(sent) == 2


async def test_two_workers_never_claim_the_same_task(tasks: Tasks, database: Database) -> None:
    ids = [f"t{i:02}" for i in range(50)]
    await asyncio.gather(*(tasks.insert(new(task_id)) for task_id in ids))
    one, two = Claims(database), Claims(database)
    got = await asyncio.gather(
        *(who.claim([task_id], name, 15) for task_id in ids for who, name in ((one, "w1"), (two, "w2")))
    )
    assert sorted(row.id for rows in got for row in rows) == ids
    overlapping = await asyncio.gather(*(one.claim(ids[i:] + ids[:i], f"w{i}", 15) for i in range(10)))
    assert overlapping == [[]] * 10


async def test_ten_workers_that_want_the_same_fifty_get_each_once(tasks: Tasks, claims: Claims) -> None:
    ids = [f"t{i:02}" for i in range(50)]
    await asyncio.gather(*(tasks.insert(new(task_id)) for task_id in ids))
    got = await asyncio.gather(*(claims.claim(ids[i * 5 :] + ids[: i * 5], f"w{i}", 15) for i in range(10)))
    assert sorted(row.id for rows in got for row in rows) == ids
    assert {row.attempts for row in await tasks.page(limit=100)} == {1}


async def test_a_living_lease_keeps_others_away_and_a_dead_one_does_not(
    tasks: Tasks, claims: Claims, database: Database
) -> None:
    await tasks.insert(new("t1"))
    [first] = await claim(claims, "t1", worker="w1")
    assert await claims.claim(["t1"], "w2", 15) == []
    await shift(database, "t1", lease_until=-16_000)
    [second] = await claim(claims, "t1", worker="w2")
    assert (second.attempts, second.claimed_by) == (2, "w2")
    assert first.claim_token != second.claim_token
    # The first worker wakes up: nothing it says counts.
    assert await claims.renew(tokens([first]), 15) == {"t1"}
    assert await claims.finish([end(first)]) == {"t1": None}
    assert await claims.hand_back(tokens([first])) == set()
    assert not await claims.retry("t1", first.claim_token or "", 5, {"code": "x"})
    await claims.beat({"t1": (first.claim_token or "", 0.9)})
    row = await tasks.get("t1")
    assert row == second
    assert await claims.finish([end(second)]) == {"t1": State.SUCCEEDED}


async def test_a_renewal_succeeds_after_the_lease_ran_out_while_nobody_claimed(
    tasks: Tasks, claims: Claims, database: Database
) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    await shift(database, "t1", lease_until=-60_000)
    assert await claims.renew(tokens([row]), 15) == set()
    assert (await claims.glimpse(["t1"]))["t1"].lease_ms > 10_000
    assert await claims.claim(["t1"], "w2", 15) == []


async def test_bulk_renewal_names_the_lost_ones_only(tasks: Tasks, claims: Claims, database: Database) -> None:
    ids = [f"t{i}" for i in range(6)]
    for task_id in ids:
        await tasks.insert(new(task_id))
    rows = await claim(claims, *ids)
    await claims.finish([end(rows[0])])
    await shift(database, "t1", lease_until=-16_000)
    await claim(claims, "t1", worker="w2")
    with statements(database) as sent:
        assert await claims.renew(tokens(rows), 15) == {"t0", "t1"}
    assert len(sent) == 2
    with statements(database) as sent:
        assert await claims.renew(tokens(rows[2:]), 15) == set()
    assert len(sent) == 1
    assert await claims.renew({"nobody": "x"}, 15) == {"nobody"}


async def test_a_glimpse_says_what_is_needed_before_a_claim(tasks: Tasks, claims: Claims) -> None:
    await tasks.insert(new("t1", deadline_ms=60_000))
    await tasks.insert(new("t2"))
    [row] = await claim(claims, "t2")
    await tasks.cancel("t2")
    seen = await claims.glimpse(["t1", "t2", "nobody"])
    assert sorted(seen) == ["t1", "t2"]
    assert (seen["t1"].state, seen["t1"].lease_ms, seen["t1"].not_before_ms, seen["t1"].attempts) == (
        State.QUEUED,
        0,
        0,
        0,
    )
    assert 50_000 < (seen["t1"].deadline_ms or 0) <= 60_000
    assert (seen["t2"].state, seen["t2"].cancel_requested, seen["t2"].deadline_ms) == (State.RUNNING, True, None)
    assert 10_000 < seen["t2"].lease_ms <= 15_000
    assert await claims.retry("t2", row.claim_token or "", 5, {"code": "x"})


async def test_progress_travels_in_bulk_and_brings_cancellations_back(
    tasks: Tasks, claims: Claims, database: Database
) -> None:
    ids = [f"t{i:02}" for i in range(50)]
    await asyncio.gather(*(tasks.insert(new(task_id)) for task_id in ids))
    rows = await claim(claims, *ids)
    await tasks.cancel("t07")
    with statements(database) as sent:
        asked = await claims.beat({row.id: (row.claim_token or "", i / 50) for i, row in enumerate(rows)})
    assert asked == {"t07"}
    assert len(sent) == 2
    seen = await tasks.watch(ids)
    assert [seen[task_id].progress for task_id in ids] == [i / 50 for i in range(50)]
    assert {seen[task_id].version for task_id in ids} == {3, 4}


async def test_a_hand_back_takes_the_attempt_back_and_is_not_produced_again(
    tasks: Tasks, claims: Claims, delivery: Delivery
) -> None:
    for name in ("t1", "t2"):
        await tasks.insert(new(name, produce_delay_ms=3_600_000))
    rows = await claim(claims, "t1", "t2")
    assert await claims.hand_back(tokens(rows[:1])) == {"t1"}
    assert await claims.hand_back(tokens(rows[1:]), count_attempt=True) == {"t2"}
    first, second = await tasks.get("t1"), await tasks.get("t2")
    assert first is not None
    assert second is not None
    assert (first.state, first.attempts, first.claimed_by, first.lease_until, first.progress) == (
        State.QUEUED,
        0,
        None,
        None,
        0.0,
    )
    assert (second.state, second.attempts) == (State.QUEUED, 1)
    assert await delivery.due(5) == []
    [again] = await claim(claims, "t1", worker="w2")
    assert again.attempts == 1


async def test_a_task_to_be_cancelled_is_not_handed_back_but_ended(
    tasks: Tasks, claims: Claims, delivery: Delivery
) -> None:
    for name in ("t1", "t2"):
        await tasks.insert(new(name))
    rows = await claim(claims, "t1", "t2")
    await tasks.cancel("t1")
    await tasks.cancel("t2")
    assert await claims.hand_back(tokens(rows[:1])) == {"t1"}
    assert await claims.retry("t2", rows[1].claim_token or "", 5, {"code": "x"})
    assert [row.state for row in await tasks.page()] == [State.CANCELLED, State.CANCELLED]
    assert [orjson.loads(event.body)["event"] for event in await delivery.events(10)][2:] == ["cancelled", "cancelled"]


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
    assert len(sent) == 5
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
