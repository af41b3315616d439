"""A cancellation wins or loses exactly once, wherever the task is, and says which; what is too late is not drawn."""

from __future__ import annotations

import asyncio

import pytest

from streamapp.db import Cancel, State
from streamapp.errors import InvalidRequest
from tests.worker.conftest import Bench


async def gone(bench: Bench) -> bool:
    return len(bench.worker.backlog) == 0


async def drawing(bench: Bench, task_id: str = "t1") -> bool:
    return task_id in bench.worker.lives.running and bench.drawing.running > 0


async def ends(bench: Bench, task_id: str = "t1") -> list[str]:
    """The ends that the task's events tell of."""
    events = [event.body.decode() for event in await bench.delivery.events(100)]
    return [
        state.value
        for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED)
        for body in events
        if f'"event":"{state.value}"' in body and f'"task_id":"{task_id}"' in body
    ]


async def test_before_intake_it_wins_and_the_message_is_dropped_when_it_comes(bench: Bench) -> None:
    await bench.submit("t1", deliver=False)
    assert await bench.tasks.cancel("t1") == Cancel("cancelled", State.CANCELLED)
    bench.deliver(await bench.row("t1"))
    await bench.until(lambda: gone(bench))
    assert (bench.drawing.orders, len(bench.acks.acked), await ends(bench)) == ([], 1, ["cancelled"])


async def test_in_the_backlog_it_wins_at_once(bench: Bench) -> None:
    bench.drawing.capacity = 0
    await bench.submit("t1")
    assert await bench.tasks.cancel("t1") == Cancel("cancelled", State.CANCELLED)
    bench.drawing.capacity = 8
    bench.worker.wake()
    await bench.until(lambda: gone(bench))
    assert (bench.drawing.orders, await ends(bench)) == ([], ["cancelled"])


async def test_in_the_running_batch_it_stops_one_task_and_leaves_its_neighbours(bench: Bench) -> None:
    bench.drawing.gate.clear()
    await bench.submit("t1", "t2")
    await bench.until(lambda: drawing(bench, "t2"))
    assert await bench.tasks.cancel("t1") == Cancel("cancelling", State.RUNNING)
    assert await bench.ended("t1") == {"t1": State.CANCELLED}
    bench.drawing.gate.set()
    assert await bench.ended("t2") == {"t2": State.SUCCEEDED}
    assert (bench.drawing.cancelled, await ends(bench), await ends(bench, "t2")) == (
        ["t1"],
        ["cancelled"],
        ["succeeded"],
    )


async def test_during_upload_it_wins_and_no_picture_is_listed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    put, reached, go_on = bench.storage.put, asyncio.Event(), asyncio.Event()

    async def slow(key: str, data: bytes, content_type: str) -> None:
        reached.set()
        await go_on.wait()
        await put(key, data, content_type)

    monkeypatch.setattr(bench.storage, "put", slow)
    await bench.submit("t1", n=2)
    await asyncio.wait_for(reached.wait(), 10)
    assert await bench.tasks.cancel("t1") == Cancel("cancelling", State.RUNNING)
    assert await bench.ended("t1") == {"t1": State.CANCELLED}
    go_on.set()
    assert (await bench.tasks.images(["t1"]))["t1"] == []
    assert (await ends(bench), len(bench.acks.acked)) == (["cancelled"], 1)


async def test_asked_for_while_the_end_is_being_written_it_wins_over_success(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker cannot be stopped any more, and the answer to the user was "cancelling": the row decides."""
    finish, reached, go_on = bench.worker.claims.finish, asyncio.Event(), asyncio.Event()

    async def late(given: object) -> object:
        reached.set()
        await go_on.wait()
        return await finish(given)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.worker.claims, "finish", late)
    await bench.submit("t1")
    await asyncio.wait_for(reached.wait(), 10)
    assert await bench.tasks.cancel("t1") == Cancel("cancelling", State.RUNNING)
    go_on.set()
    assert await bench.ended("t1") == {"t1": State.CANCELLED}
    assert (await bench.tasks.images(["t1"]))["t1"] == []
    assert (await ends(bench), len(bench.acks.acked)) == (["cancelled"], 1)


async def test_after_the_end_it_loses_and_says_to_what(bench: Bench) -> None:
    await bench.submit("t1")
    await bench.ended("t1")
    assert await bench.tasks.cancel("t1") == Cancel("ended", State.SUCCEEDED)
    assert await bench.tasks.cancel("nobody") == Cancel("missing", None)
    assert await ends(bench) == ["succeeded"]


async def test_asked_for_while_a_failure_is_being_written_it_wins_and_the_message_is_acked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = bench.worker.claims.finish

    async def late(given: object) -> object:
        assert (await bench.tasks.cancel("t1")).outcome == "cancelling"
        return await finish(given)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.worker.claims, "finish", late)
    bench.drawing.failures["t1"] = [InvalidRequest("no such sampler")]
    await bench.submit("t1")
    assert await bench.ended("t1") == {"t1": State.CANCELLED}
    assert (bench.letters, await ends(bench), len(bench.acks.acked)) == ([], ["cancelled"], 1)


@pytest.mark.parametrize("turns", range(12))
async def test_racing_with_every_stage_there_is_one_end_and_the_answer_foretold_it(bench: Bench, turns: int) -> None:
    await bench.submit("t1", n=2)
    for _ in range(turns * turns):
        await asyncio.sleep(0)
    answer = await bench.tasks.cancel("t1")
    state = (await bench.ended("t1"))["t1"]
    assert state is (State.SUCCEEDED if answer.outcome == "ended" else State.CANCELLED)
    assert await ends(bench) == [state.value]
    assert len((await bench.tasks.images(["t1"]))["t1"]) == (2 if state is State.SUCCEEDED else 0)
    assert len(bench.acks.acked) == 1


# Expiry.
@pytest.mark.parametrize("delivered", [True, False])
async def test_past_its_deadline_a_task_ends_as_expired_without_drawing_and_its_row_stays(
    bench: Bench, delivered: bool
) -> None:
    bench.drawing.capacity = 0
    await bench.submit("t1", deadline_ms=1, deliver=delivered)
    if not delivered:

        async def swept() -> bool:
            return await bench.delivery.expire_overdue(10) == {"t1"}

        await bench.until(swept)
    assert await bench.ended("t1") == {"t1": State.EXPIRED}
    row = await bench.row("t1")
    assert row.error is not None
    assert (row.error["code"], bench.drawing.orders, await ends(bench)) == ("expired", [], ["expired"])
    assert await bench.tasks.cancel("t1") == Cancel("ended", State.EXPIRED)


async def test_a_task_that_is_being_drawn_at_its_deadline_is_finished(bench: Bench) -> None:
    bench.drawing.gate.clear()
    await bench.submit("t1", deadline_ms=300)
    await bench.until(lambda: drawing(bench))
    row = await bench.row("t1")
    assert row.deadline_at is not None

    async def over() -> bool:
        return await bench.database.now() > row.deadline_at  # type: ignore[operator]

    await bench.until(over)
    bench.drawing.gate.set()
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
