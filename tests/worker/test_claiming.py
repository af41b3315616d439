"""Claims while the database comes and goes: every job begins or is given up, and only what began counts."""

from __future__ import annotations

from typing import Any

import pytest

from streamapp.db import State, TaskRow
from streamapp.errors import Unavailable
from streamapp.worker.claiming import AT_HAND
from streamapp.worker.drawing import Order
from streamapp.worker.pictures import Orders
from tests.worker.conftest import Bench
from tests.worker.support import message


async def running(bench: Bench, *ids: str) -> bool:
    return set(ids) <= set(bench.worker.lives.running) and bench.drawing.running > 0


async def test_a_claim_whose_answer_was_lost_is_given_up_and_counts_as_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database dies between making the claim and saying so."""
    real, calls = bench.worker.claims.claim, 0

    async def claim(*args: Any, **given: Any) -> Any:
        nonlocal calls
        calls += 1
        rows = await real(*args, **given)
        if calls == 1:
            raise Unavailable("the server has gone away")
        return rows

    monkeypatch.setattr(bench.worker.claims, "claim", claim)
    await bench.submit("t1")
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    assert (await bench.row("t1")).attempts == 1


async def test_jobs_claimed_together_all_begin_though_one_cannot_be_handed_back_yet(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them must run alone later; the database is away at the moment when its claim is given up."""
    real, refused = bench.worker.claims.hand_back, 0

    async def hand_back(*args: Any, **given: Any) -> Any:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise Unavailable("the server has gone away")
        return await real(*args, **given)

    bench.drawing.gate.clear()
    await bench.submit("t0")
    await bench.until(lambda: running(bench, "t0"))
    await bench.submit("t1", "t2", deliver=False)
    [row] = await bench.claims.claim(["t1"], "other", 4)
    assert await bench.claims.retry("t1", row.claim_token or "", 0.0, {"code": "engine_crashed", "message": "died"})
    monkeypatch.setattr(bench.worker.claims, "hand_back", hand_back)
    for task_id in ("t1", "t2"):
        bench.deliver(await bench.row(task_id))
    await bench.until(lambda: running(bench, "t0", "t2"))
    bench.drawing.gate.set()
    assert set((await bench.ended("t0", "t1", "t2")).values()) == {State.SUCCEEDED}
    assert refused == 2


async def test_a_database_that_goes_away_before_the_drawing_costs_no_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a claimed task are looked up in the registry: the only attempt is not used up by that."""
    real, refused = Orders.__call__, 0

    async def look_up(orders: Orders, row: TaskRow) -> Order:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise Unavailable("the server has gone away")
        return await real(orders, row)

    monkeypatch.setattr(Orders, "__call__", look_up)
    await bench.submit("t1", max_attempts=1)
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    row = await bench.row("t1")
    assert (refused, row.attempts, row.history) == (2, 1, ())


async def test_a_message_cannot_have_another_picture_drawn_than_its_row_says(bench: Bench) -> None:
    await bench.submit("t1", "t2", deliver=False)
    bench.deliver(await bench.row("t1"), seed=99)
    bench.deliver(await bench.row("t2"))
    assert set((await bench.ended("t1", "t2")).values()) == {State.SUCCEEDED}
    pictures = await bench.tasks.images(["t1", "t2"])
    assert {image.seed for images in pictures.values() for image in images} == {(await bench.row("t1")).params.seed}


async def test_messages_are_forgotten_with_the_claim_and_beyond_a_number(bench: Bench) -> None:
    claimer = bench.worker._claimer
    await bench.submit("t1")
    assert (await bench.ended("t1"))["t1"] is State.SUCCEEDED
    assert not claimer._at_hand
    for number in range(3 * AT_HAND):
        claimer.note(message(f"n{number}"))
    assert len(claimer._at_hand) == AT_HAND
