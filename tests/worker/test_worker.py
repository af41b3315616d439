"""From a delivered message to an ended row: the ways a claimed job can go."""

from __future__ import annotations

import asyncio

import pytest

from streamapp.broker.record import TP
from streamapp.db import State
from streamapp.errors import InvalidRequest, Unavailable
from streamapp.postprocess import read_recipe
from tests.db.support import end
from tests.worker.conftest import Bench
from tests.worker.support import message


async def test_a_delivered_task_ends_succeeded_with_stored_pictures_and_is_acked_once(bench: Bench) -> None:
    await bench.submit("t1", n=2, seed=41)
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    images = (await bench.tasks.images(["t1"]))["t1"]
    assert [(image.idx, image.seed, image.content_type) for image in images] == [
        (0, 41, "image/png"),
        (1, 42, "image/png"),
    ]
    for image in images:
        data = b"".join([part async for part in bench.storage.read(image.key)])
        assert len(data) == image.bytes
        assert read_recipe(data) == image.recipe
    assert bench.acks.acked == [(TP("sd15_tasks", 0), 0)]
    row = await bench.row("t1")
    assert row.attempts == 1
    assert {"queue", "denoise", "post"} <= set(row.timings)


async def test_nothing_is_acked_while_a_task_runs(bench: Bench) -> None:
    bench.drawing.gate.clear()
    await bench.submit("t1")
    await bench.until(lambda: running(bench, "t1"))
    assert bench.acks.acked == []
    bench.drawing.gate.set()
    await bench.ended("t1")
    assert len(bench.acks.acked) == 1


async def running(bench: Bench, *ids: str) -> bool:
    return set(ids) <= set(bench.worker.lives.running) and bench.drawing.running > 0


async def test_more_than_the_engine_holds_waits_and_is_not_claimed(bench: Bench) -> None:
    bench.drawing.gate.clear()
    ids = [f"t{number}" for number in range(20)]
    await bench.submit(*ids)
    await bench.until(lambda: full(bench))
    states = [(await bench.row(task_id)).state for task_id in ids]
    assert states.count(State.RUNNING) == 8
    assert states.count(State.QUEUED) == 12
    bench.drawing.gate.set()
    assert set((await bench.ended(*ids)).values()) == {State.SUCCEEDED}


async def full(bench: Bench) -> bool:
    return bench.drawing.running >= bench.drawing.capacity and bench.worker.crowded


async def test_redelivered_ended_tasks_are_acked_and_dropped_without_drawing(bench: Bench) -> None:
    ids = [f"t{number}" for number in range(5)]
    await bench.submit(*ids)
    await bench.ended(*ids)
    drawn = len(bench.drawing.orders)
    for task_id in ids:
        bench.deliver(await bench.row(task_id))
    await bench.until(lambda: empty(bench))
    assert len(bench.drawing.orders) == drawn == 5
    assert len(bench.acks.acked) == 10


async def empty(bench: Bench) -> bool:
    return len(bench.worker.backlog) == 0


async def test_a_task_somebody_else_draws_is_held_and_taken_over_when_the_lease_runs_out(bench: Bench) -> None:
    await bench.submit("t1", deliver=False)
    await bench.claims.claim(["t1"], "other", 1.0)
    bench.deliver(await bench.row("t1"))
    await bench.until(lambda: held(bench, "t1"))
    assert bench.drawing.orders == []
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    assert (await bench.row("t1")).attempts == 2


async def held(bench: Bench, task_id: str) -> bool:
    job = bench.worker.backlog.get(task_id)
    return job is not None and job.phase.value == "held"


async def test_a_message_without_a_row_is_dropped(bench: Bench) -> None:
    bench.worker.receive(message("ghost"), bench.acks.receipt(), 0.0)
    await bench.until(lambda: empty(bench))
    assert len(bench.acks.acked) == 1
    assert bench.drawing.orders == []


async def test_a_retryable_failure_is_queued_for_later_and_acked(bench: Bench) -> None:
    """The outbox delivers it again when due; the failure is in the history."""
    bench.drawing.failures["t1"] = [Unavailable("the weights are on the way")]
    await bench.submit("t1")
    await bench.until(lambda: empty(bench))
    row = await bench.row("t1")
    assert row.state is State.QUEUED
    assert row.not_before is not None
    assert row.produce_at is not None
    assert [entry["code"] for entry in row.history] == ["unavailable"]
    assert len(bench.acks.acked) == 1
    assert bench.letters == []


async def test_what_cannot_succeed_fails_at_once_with_a_dead_letter(bench: Bench) -> None:
    bench.drawing.failures["t1"] = [InvalidRequest("no such sampler")]
    await bench.submit("t1")
    assert await bench.ended("t1") == {"t1": State.FAILED}
    assert [(letter.task_id, letter.message) for letter in bench.letters] == [("t1", "no such sampler")]
    row = await bench.row("t1")
    assert row.error is not None
    assert row.error["code"] == "invalid_request"


async def test_a_model_that_is_gone_fails_the_task_with_its_name(bench: Bench) -> None:
    await bench.submit("t1", model="missing")
    assert await bench.ended("t1") == {"t1": State.FAILED}
    row = await bench.row("t1")
    assert row.error is not None
    assert "missing" in row.error["message"]


async def test_a_cancel_request_stops_a_running_task(bench: Bench) -> None:
    bench.drawing.gate.clear()
    await bench.submit("t1")
    await bench.until(lambda: running(bench, "t1"))
    assert (await bench.tasks.cancel("t1")).outcome == "cancelling"
    assert await bench.ended("t1") == {"t1": State.CANCELLED}
    assert bench.drawing.cancelled == ["t1"]
    assert await bench.tasks.images(["t1"]) in ({}, {"t1": []})
    assert len(bench.acks.acked) == 1


async def test_a_task_cancelled_while_it_waits_is_dropped_without_drawing(bench: Bench) -> None:
    bench.drawing.capacity = 0
    await bench.submit("t1")
    assert (await bench.tasks.cancel("t1")).outcome == "cancelled"
    bench.drawing.capacity = 8
    bench.worker.wake()
    await bench.until(lambda: empty(bench))
    assert bench.drawing.orders == []


async def test_a_task_past_its_deadline_expires_without_drawing(bench: Bench) -> None:
    bench.drawing.capacity = 0
    await bench.submit("t1", deadline_ms=50)
    assert await bench.ended("t1") == {"t1": State.EXPIRED}
    assert bench.drawing.orders == []
    assert len(bench.acks.acked) == 1


async def test_a_lost_claim_is_dropped_without_writing(bench: Bench) -> None:
    """Somebody else claimed and finished: our pictures do not count, our event is acked once the task has ended."""
    bench.drawing.gate.clear()
    await bench.submit("t1")
    await bench.until(lambda: running(bench, "t1"))
    claimed = bench.worker.lives.running["t1"]
    await bench.claims.hand_back({"t1": claimed.token})
    [row] = await bench.claims.claim(["t1"], "other", 30.0)
    await bench.until(lambda: held(bench, "t1"))
    assert bench.drawing.cancelled == ["t1"]
    await bench.claims.finish([end(row)])
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    assert [image.idx for image in (await bench.tasks.images(["t1"]))["t1"]] == [0]
    assert bench.worker.lives.counts.lost == 1


async def test_after_an_engine_crash_suspects_run_alone_and_only_the_guilty_one_is_charged(bench: Bench) -> None:
    ids = [f"t{number}" for number in range(5)]
    bench.drawing.gate.clear()
    bench.drawing.poison.add("t2")
    await bench.submit(*ids, max_attempts=1)
    bench.worker.wake()
    await bench.until(lambda: crashed(bench, 2))
    bench.drawing.gate.set()
    states = await bench.ended(*ids)
    assert states == {task_id: State.FAILED if task_id == "t2" else State.SUCCEEDED for task_id in ids}
    assert [(letter.task_id, letter.attempts) for letter in bench.letters] == [("t2", 1)]
    assert {(await bench.row(task_id)).attempts for task_id in ids} == {1}
    assert bench.worker.lives.suspects == set()


async def crashed(bench: Bench, times: int) -> bool:
    return bench.worker.lives.counts.crashes >= times


async def test_a_storage_outage_keeps_the_picture_and_the_task_open(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, down = bench.storage.put, [True]

    async def flaky(key: str, data: bytes, content_type: str) -> None:
        if down[0]:
            raise Unavailable("the storage does not answer")
        await put(key, data, content_type)

    monkeypatch.setattr(bench.storage, "put", flaky)
    await bench.submit("t1")
    await bench.until(lambda: spooled(bench))
    assert (await bench.row("t1")).state is State.RUNNING
    assert bench.acks.acked == []
    down[0] = False
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    assert bench.drawing.orders == ["t1"]
    assert bench.worker.spool.bytes == 0


async def spooled(bench: Bench) -> bool:
    return bench.worker.spool.bytes > 0


async def test_a_drain_finishes_what_it_can_and_hands_the_rest_back_uncounted(bench: Bench) -> None:
    bench.drawing.gate.clear()
    bench.drawing.capacity = 2
    ids = ["t0", "t1", "t2", "t3"]
    await bench.submit(*ids)
    await bench.until(lambda: running(bench, "t0", "t1"))
    finished, handed = await bench.worker.drain(0.1)
    assert (finished, handed) == (0, 2)
    rows = [await bench.row(task_id) for task_id in ids]
    assert {(row.state, row.attempts) for row in rows} == {(State.QUEUED, 0)}
    assert bench.acks.acked == []
    [again, *_] = await bench.claims.claim(ids, "other", 5.0)
    assert again.attempts == 1


async def test_a_drain_waits_for_running_tasks_within_its_limit(bench: Bench) -> None:
    bench.drawing.gate.clear()
    await bench.submit("t1")
    await bench.until(lambda: running(bench, "t1"))
    drain = asyncio.create_task(bench.worker.drain(10.0))
    await asyncio.sleep(0)
    bench.drawing.gate.set()
    assert await drain == (1, 0)
    assert (await bench.row("t1")).state is State.SUCCEEDED


async def test_a_long_running_task_keeps_its_lease(bench: Bench) -> None:
    """Leases are renewed, so that nobody else takes over what is being drawn."""
    bench.drawing.gate.clear()
    await bench.submit("t1")
    await bench.until(lambda: running(bench, "t1"))
    first = (await bench.row("t1")).lease_until
    assert first is not None

    async def renewed() -> bool:
        row = await bench.row("t1")
        return row.lease_until is not None and row.lease_until > first + 500 and row.progress == pytest.approx(0.475)

    await bench.until(renewed)
    bench.drawing.gate.set()
    await bench.ended("t1")


async def test_partitions_that_leave_take_their_waiting_jobs_with_them(bench: Bench) -> None:
    bench.drawing.capacity = 0
    await bench.submit("t1", "t2")
    await bench.worker.assigned({TP("sd15_tasks", 3)})
    assert len(bench.worker.backlog) == 0
    assert bench.acks.acked == []
    facts = bench.worker.facts()
    assert facts["partitions"] == {"sd15_tasks": (3,)}
