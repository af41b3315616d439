"""A lone claim that reads no row: it holds only where the row says what the message says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streamapp.db import Claims, Database, Delivery, Produced, State, TaskRow, Tasks
from streamapp.outbox import message_of
from streamapp.records import TaskMessage, decode
from streamapp.worker.claiming import as_submitted
from tests.db.support import claim, new, params, shift, statements


async def known(tasks: Tasks, **changes: Any) -> TaskRow:
    """What a worker makes of the message of a task that was just submitted."""
    row, _ = await tasks.insert(new("t1", **changes))
    message = decode(TaskMessage, message_of(row).encode())
    return as_submitted(message, 3, row.submitted_at + 5)


async def test_a_task_as_submitted_is_claimed_by_one_statement(
    tasks: Tasks, claims: Claims, database: Database
) -> None:
    said = await known(tasks, deadline_ms=60_000, params=params(true_cfg=2.5, guidance=7))
    with statements(database) as sent:
        [row] = await claims.claim(["t1"], "w1", 15, known=said)
    assert len(sent) == 1
    kept = await tasks.get("t1")
    assert kept is not None
    unread = ("request", "lease_until", "started_at", "produce_at")
    assert row == replace(kept, **{name: getattr(row, name) for name in unread})
    assert (kept.state, kept.attempts, kept.claimed_by, kept.version) == (State.RUNNING, 1, "w1", 2)
    assert await claims.renew({"t1": row.claim_token or ""}, 15) == set()
    assert await claims.claim(["t1"], "w2", 15, known=said) == []


async def test_marking_where_the_message_went_is_no_change(tasks: Tasks, claims: Claims, database: Database) -> None:
    said = await known(tasks)
    await Delivery(database).mark_produced([Produced("t1", "sd15_tasks", 1, 7)])
    with statements(database) as sent:
        [row] = await claims.claim(["t1"], "w1", 15, known=said)
    assert (len(sent), row.id) == (1, "t1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"params": params(prompt="another picture")},
        {"user_id": "bob"},
        {"model": "other"},
        {"family": "flux"},
        {"priority": 0},
        {"cost": 0.1},
        {"max_attempts": 9},
        {"submitted_at": 1},
        {"deadline_at": 2**52},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_the_row_has_the_word_where_a_message_says_something_else(
    tasks: Tasks, claims: Claims, wrong: dict[str, Any]
) -> None:
    said = await known(tasks)
    [row] = await claims.claim(["t1"], "w1", 15, known=replace(said, **wrong))
    assert row == await tasks.get("t1")
    assert (row.params, row.user_id, row.max_attempts) == (params(), "ana", 3)


async def test_a_task_that_failed_before_is_read_with_its_history(tasks: Tasks, claims: Claims) -> None:
    said = await known(tasks)
    [first] = await claim(claims, "t1")
    assert await claims.retry("t1", first.claim_token or "", 0.0, {"code": "out_of_memory", "message": "too large"})
    [row] = await claims.claim(["t1"], "w1", 15, known=said)
    assert (row.attempts, [past["code"] for past in row.history]) == (2, ["out_of_memory"])


async def test_what_is_over_or_held_is_not_claimed(tasks: Tasks, claims: Claims, database: Database) -> None:
    said = await known(tasks, deadline_ms=60_000)
    await claim(claims, "t1", worker="other")
    assert await claims.claim(["t1"], "w1", 15, known=said) == []
    await shift(database, "t1", lease_until=-16_000)
    [row] = await claims.claim(["t1"], "w1", 15, known=said)
    assert row.attempts == 2
    await claims.hand_back({"t1": row.claim_token or ""})
    await shift(database, "t1", deadline_at=-61_000)
    assert await claims.claim(["t1"], "w1", 15, known=said) == []


async def test_of_a_cancelled_task_nothing_is_claimed(tasks: Tasks, claims: Claims) -> None:
    said = await known(tasks)
    await tasks.cancel("t1")
    assert await claims.claim(["t1"], "w1", 15, known=said) == []
