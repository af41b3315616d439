"""The worker's side: one claim at a time, leases, hand-backs."""

from __future__ import annotations

import asyncio

import orjson

from streamapp.db import Claims, Database, Delivery, State, Tasks
from tests.db.support import claim, end, new, shift, statements, tokens


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
    assert 50_000 < (seen["t1"].deadline_ms or 0) <= 60_100
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
