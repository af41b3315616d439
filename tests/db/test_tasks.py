"""The user's side: submit once, look, page, cancel, replay."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from streamapp.db import Cancel, Claims, Database, Delivery, State, Tasks, open_database
from streamapp.errors import Conflict
from tests.db.support import TEXT, claim, end, force, new, shift, statements, tokens


async def test_a_task_comes_back_as_it_was_submitted(tasks: Tasks, database: Database) -> None:
    given = new("t1", deadline_ms=5_000, produce_delay_ms=2_000, callback_url="http://127.0.0.1/é", trace="00-a-b-01")
    before = await database.now()
    row, created = await tasks.insert(given)
    assert created
    assert row == await tasks.get("t1")
    assert (row.params, row.request, row.params.prompt) == (given.params, {"text": TEXT}, TEXT)
    assert (row.state, row.version, row.attempts, row.progress, row.cancel_requested) == (
        State.QUEUED,
        1,
        0,
        0.0,
        False,
    )
    assert before <= row.submitted_at <= await database.now()
    assert (row.deadline_at, row.produce_at) == (row.submitted_at + 5_000, row.submitted_at + 2_000)
    assert (row.callback_url, row.trace) == ("http://127.0.0.1/é", "00-a-b-01")


async def test_submitting_tells_of_it_once(tasks: Tasks, delivery: Delivery) -> None:
    await tasks.insert(new("t1"))
    [event] = await delivery.events(10)
    body = orjson.loads(event.body)
    assert (event.key, body["kind"], body["event"], body["task_id"], body["event_id"]) == (
        "t1",
        "task_event",
        "submitted",
        "t1",
        "t1:1",
    )
    assert (body["shape"], body["with_lora"]) == ("128x128", True)


async def test_an_unknown_task_and_another_users_task_are_not_there(tasks: Tasks) -> None:
    await tasks.insert(new("t1", user_id="ana"))
    assert await tasks.get("t2") is None
    assert await tasks.get("t1", "bob") is None
    assert (await tasks.get("t1", "ana")) is not None
    assert await tasks.cancel("t1", "bob") == Cancel("missing", None)


async def test_an_id_is_taken_once(tasks: Tasks) -> None:
    await tasks.insert(new("t1"))
    with pytest.raises(Conflict):
        await tasks.insert(new("t1"))
    with pytest.raises(Conflict):
        await tasks.insert(new("t1", idempotency_key="k"))


async def test_fifty_submits_of_one_key_make_one_task(database: Database, delivery: Delivery) -> None:
    several = [Tasks(database) for _ in range(5)]
    answers = await asyncio.gather(*(several[i % 5].insert(new(f"t{i:02}", idempotency_key="once")) for i in range(50)))
    assert sum(created for _, created in answers) == 1
    assert len({row.id for row, _ in answers}) == 1
    assert len(await delivery.events(100)) == 1
    assert len(await several[0].page()) == 1


async def test_a_key_belongs_to_its_user(tasks: Tasks) -> None:
    answers = [
        await tasks.insert(new(f"t-{user}", user_id=user, idempotency_key="k")) for user in ("ana", "Ana", "bob")
    ]
    assert [created for _, created in answers] == [True, True, True]


async def test_a_known_key_gives_the_task_as_it_is_now(tasks: Tasks, claims: Claims) -> None:
    await tasks.insert(new("t1", idempotency_key="k"))
    await claim(claims, "t1")
    row, created = await tasks.insert(new("t2", idempotency_key="k"))
    assert (row.id, row.state, created) == ("t1", State.RUNNING, False)


async def test_one_bad_task_does_not_take_its_neighbours_with_it(tasks: Tasks) -> None:
    await tasks.insert(new("t0"))
    answers = await asyncio.gather(*(tasks.insert(new(name)) for name in ("t1", "t0", "t2")), return_exceptions=True)
    assert [type(answer) for answer in answers] == [tuple, Conflict, tuple]
    assert [row.id for row in await tasks.page()] == ["t2", "t1", "t0"]


async def test_a_client_that_leaves_does_not_disturb_the_others(tasks: Tasks) -> None:
    leaving = asyncio.create_task(tasks.insert(new("t1")))
    staying = asyncio.create_task(tasks.insert(new("t2")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying)[1]
    assert leaving.cancelled() or leaving.cancelling()


async def test_many_submits_share_transactions(tasks: Tasks, database: Database) -> None:
    with statements(database) as sent:
        await asyncio.gather(*(tasks.insert(new(f"t{i:03}")) for i in range(200)))
    # The clock once; rows and events: once for the first submit, which waits for nobody, and for 32 of the others each.
    assert len(sent) <= 1 + 2 * (1 + 7)


async def test_pages_go_from_new_to_old(tasks: Tasks) -> None:
    for i in range(7):
        await tasks.insert(new(f"t{i}", user_id="ana" if i % 2 else "bob"))
    await tasks.cancel("t3")
    assert [row.id for row in await tasks.page(limit=3)] == ["t6", "t5", "t4"]
    assert [row.id for row in await tasks.page(before="t4", limit=3)] == ["t3", "t2", "t1"]
    assert [row.id for row in await tasks.page(user_id="ana")] == ["t5", "t3", "t1"]
    assert [row.id for row in await tasks.page(user_id="ana", state=State.CANCELLED)] == ["t3"]
    assert [row.id for row in await tasks.page(state=State.QUEUED, before="t3")] == ["t2", "t1", "t0"]


async def test_watching_many_tasks_is_one_query(tasks: Tasks, claims: Claims, database: Database) -> None:
    for i in range(5):
        await tasks.insert(new(f"t{i}"))
    [row] = await claim(claims, "t1")
    await claims.beat({"t1": (row.claim_token or "", 0.25)})
    with statements(database) as sent:
        seen = await tasks.watch([f"t{i}" for i in range(5)] + ["nobody"])
    assert len(sent) == 1
    assert sorted(seen) == ["t0", "t1", "t2", "t3", "t4"]
    assert (seen["t1"].state, seen["t1"].progress, seen["t1"].version) == (State.RUNNING, 0.25, 3)
    assert await tasks.watch([]) == {}


async def test_a_queued_task_is_cancelled_at_once(tasks: Tasks, delivery: Delivery) -> None:
    await tasks.insert(new("t1", callback_url="http://x/"))
    assert await tasks.cancel("t1") == Cancel("cancelled", State.CANCELLED)
    row = await tasks.get("t1")
    assert row is not None
    assert (row.state, row.produce_at, row.version) == (State.CANCELLED, None, 2)
    assert row.ended_at is not None
    assert row.error is not None
    assert row.error["code"] == "cancelled"
    events = [orjson.loads(event.body) for event in await delivery.events(10)]
    assert [(event["event"], event["event_id"]) for event in events] == [("submitted", "t1:1"), ("cancelled", "t1:2")]
    [callback] = await delivery.due_callbacks(10, 60)
    assert (callback.url, callback.event_id, orjson.loads(callback.body)["event"]) == ("http://x/", "t1:2", "cancelled")
    assert await tasks.cancel("t1") == Cancel("ended", State.CANCELLED)


async def test_a_running_task_is_asked_to_stop_and_then_cannot_succeed(
    tasks: Tasks, claims: Claims, delivery: Delivery
) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    assert await tasks.cancel("t1") == Cancel("cancelling", State.RUNNING)
    assert await tasks.cancel("t1") == Cancel("cancelling", State.RUNNING)
    assert await claims.beat({"t1": (row.claim_token or "", 0.5)}) == {"t1"}
    assert await claims.finish([end(row)]) == {"t1": State.CANCELLED}
    assert await tasks.images(["t1"]) == {"t1": []}
    ended = await tasks.get("t1")
    assert ended is not None
    assert ended.state is State.CANCELLED
    body = orjson.loads((await delivery.events(10))[-1].body)
    assert (body["event"], body["images"]) == ("cancelled", 0)


async def test_a_task_whose_worker_is_gone_is_cancelled_at_once(
    tasks: Tasks, claims: Claims, database: Database
) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    await shift(database, "t1", lease_until=-20_000)
    assert await tasks.cancel("t1") == Cancel("cancelled", State.CANCELLED)
    assert await claims.finish([end(row)]) == {"t1": None}
    assert await claims.renew(tokens([row]), 15) == {"t1"}


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_an_ended_task_without_a_result_is_replayed(
    state: State, tasks: Tasks, claims: Claims, delivery: Delivery
) -> None:
    await tasks.insert(new("t1", deadline_ms=60_000))
    [row] = await claim(claims, "t1")
    assert await claims.finish([end(row, state, error={"code": "boom"})]) == {"t1": state}
    assert await tasks.replay("t1")
    again = await tasks.get("t1")
    assert again is not None
    assert (again.state, again.attempts, again.error, again.ended_at, again.cancel_requested) == (
        State.QUEUED,
        0,
        None,
        None,
        False,
    )
    assert [task.id for task in await delivery.due(5)] == ["t1"]
    assert await claims.finish([end(row)]) == {"t1": None}
    [row] = await claim(claims, "t1")
    assert await claims.finish([end(row)]) == {"t1": State.SUCCEEDED}


async def test_a_replayed_deadline_counts_from_now(tasks: Tasks, claims: Claims, database: Database) -> None:
    await tasks.insert(new("t1", deadline_ms=60_000))
    await shift(database, "t1", submitted_at=-100_000, deadline_at=-100_000)
    assert await claims.expire(["t1"]) == {"t1"}
    assert await tasks.replay("t1")
    row = await tasks.get("t1")
    assert row is not None
    assert row.deadline_at is not None
    assert row.produce_at is not None
    assert row.deadline_at == row.produce_at + 60_000


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.SUCCEEDED])
async def test_live_and_succeeded_tasks_are_not_replayed(state: State, tasks: Tasks, database: Database) -> None:
    await tasks.insert(new("t1"))
    await force(database, "t1", {"state": state.value})
    assert not await tasks.replay("t1")
    assert not await tasks.replay("nobody")


async def test_the_position_counts_higher_priorities_and_older_tasks_of_the_family(
    tasks: Tasks, claims: Claims
) -> None:
    for name, priority, family in (
        ("a", 2, "sd15"), ("b", 2, "sd15"), ("c", 0, "sd15"), ("d", 3, "sd15"), ("e", 0, "flux"), ("f", 2, "sd15"),
    ):  # fmt: skip
        await tasks.insert(new(name, priority=priority, family=family))
        await asyncio.sleep(0.002)  # another millisecond
    positions = {}
    for name in "abcdef":
        row = await tasks.get(name)
        assert row is not None
        positions[name] = await tasks.position(row)
    assert positions == {"a": 1, "b": 2, "c": 0, "d": 4, "e": 0, "f": 3}
    [running] = await claim(claims, "a")
    assert await tasks.position(running) == 0


async def test_counts_are_by_state_family_and_model(database: Database) -> None:
    tasks, claims = Tasks(database), Claims(database)
    for i in range(3):
        await tasks.insert(new(f"t{i}"))
    await tasks.insert(new("x", family="flux", model="big"))
    await claim(claims, "t0")
    assert await tasks.counts() == {
        ("queued", "sd15", "pocket"): 2,
        ("running", "sd15", "pocket"): 1,
        ("queued", "flux", "big"): 1,
    }


async def test_back_pressure_sees_this_processs_submits_at_once(tasks: Tasks) -> None:
    assert await tasks.queued(3) == 0
    for i in range(5):
        await tasks.insert(new(f"t{i}"))
    assert await tasks.queued(3) == 3


async def test_a_second_connection_sees_what_is_accepted(tasks: Tasks, database: Database) -> None:
    other = open_database(database.url.render_as_string(hide_password=False))
    await tasks.insert(new("t1"))
    assert (await Tasks(other).get("t1")) is not None
    await other.close()


async def test_far_back_in_a_long_queue_the_position_is_an_estimate(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamapp.db.census.EXACT", 10)
    tasks = Tasks(database)
    for i in range(40):
        await tasks.insert(new(f"t{i:02}"))
    start = 1_700_000_000_000
    for i in range(40):
        await force(database, f"t{i:02}", {"submitted_at": start + i * 100})
    rows = {row.id: row for row in await tasks.page(limit=100)}
    positions = [await tasks.position(rows[f"t{i:02}"]) for i in range(40)]
    assert positions[:10] == list(range(10))
    assert all(abs(position - i) <= 5 for i, position in enumerate(positions))
    with statements(database) as sent:
        await tasks.position(rows["t39"])
    assert sent == []


async def test_figures_are_taken_again_only_when_stale(database: Database) -> None:
    tasks = Tasks(database)
    await tasks.counts()
    with statements(database) as sent:
        for _ in range(100):
            await tasks.counts()
            await tasks.queued(10)
    assert len(sent) == 1
