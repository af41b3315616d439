"""From a row and its Kafka event to an acked picture, through the real agents and tables over the embedded broker."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import aiohttp
import faust.types
import pytest

from streamapp import read_models, topics
from streamapp.broker.record import TP
from streamapp.db import State
from streamapp.errors import Unavailable
from streamapp.run import CRASHED, INCOMPLETE, MISCONFIGURED, STOPPED, Process
from tests.agents.conftest import Service, Start


async def committed(service: Service, topic: str = "sd15_tasks") -> bool:
    """Whether the group's offsets have reached the end of a topic."""
    admin, group = service.app.runtime.admin, service.app.settings.app_id
    ends = {tp: end for tp, (_, end) in (await admin.bounds([topic])).items() if end}
    return bool(ends) and await admin.committed(group, [topic]) == ends


async def test_a_row_and_its_message_become_a_stored_picture_and_an_acked_event(start: Start) -> None:
    async with start() as service:
        await service.ready()
        ids = [f"t{number}" for number in range(12)]
        await service.deliver(*ids, n=2)
        assert set((await service.ended(*ids)).values()) == {State.SUCCEEDED}
        runtime = service.app.runtime
        images = await runtime.tasks.images(ids)
        assert {task_id: [image.idx for image in images[task_id]] for task_id in ids} == {i: [0, 1] for i in ids}
        for image in (image for row in images.values() for image in row):
            found = await runtime.storage.head(image.key)
            assert found is not None
            assert (found.size, found.content_type) == (image.bytes, "image/png")
        await service.until(lambda: committed(service))
        assert await service.stop() == STOPPED


async def test_the_tables_show_worker_backlog_resident_weights_and_throughput(start: Start) -> None:
    async with start(status_interval=0.1) as service:
        await service.ready()
        service.drawing.gate.clear()
        await service.deliver("t1", "t2")

        async def shown() -> bool:
            return bool(read_models.backlog(service.app).get("pocket", {}).get("jobs") == 2)

        await service.until(shown)
        [worker] = read_models.workers(service.app)
        assert (worker["worker_id"], worker["role"], worker["state"]) == ("up-1", "up", "running")
        assert worker["partitions"] == {"sd15_tasks": [0, 1, 2, 3], "sd15_tasks_urgent": [0, 1, 2, 3]}
        assert read_models.lora_state(service.app) == {"up-1": {"checkpoints": {"pocket": "vram"}, "loras": {}}}
        service.drawing.gate.set()
        await service.ended("t1", "t2")

        async def counted() -> bool:
            windows = read_models.throughput(service.app)
            finished = [total["finished"] for total in windows if total["window"] == "hour"]
            return bool(sum(finished) == 2)

        await service.until(counted)


async def test_a_rebalance_loses_nothing_and_draws_nothing_twice(start: Start) -> None:
    """Everything un-acked is delivered again: held jobs are recognised, the engine draws on."""
    async with start() as service:
        await service.ready()
        service.drawing.gate.clear()
        ids = [f"t{number}" for number in range(30)]
        await service.deliver(*ids)
        backlog = service.app.runtime.worker.backlog

        async def all_held() -> bool:
            return bool(len(backlog) == 30 and service.drawing.running == 8)

        await service.until(all_held)
        service.app.consumer._rejoin.set()

        async def again() -> bool:
            return bool(backlog.redelivered >= 30)

        await service.until(again)
        assert len(backlog) == 30
        assert service.drawing.running == 8
        service.drawing.gate.set()
        assert set((await service.ended(*ids)).values()) == {State.SUCCEEDED}
        assert sorted(service.drawing.orders) == sorted(ids)
        await service.until(lambda: committed(service))


async def test_what_nobody_can_read_becomes_a_dead_letter_and_holds_up_nobody(start: Start) -> None:
    async with start() as service:
        await service.ready()
        for value in (b"\x00\xff", b"{}", b'{"kind": "task", "v": 99}', None):
            await service.app.produce("sd15_tasks", 1, b"key", value)
        await service.app.produce(topics.WORKER_STATUS, None, b"key", b"not a status")
        await service.app.produce(topics.TASK_EVENTS, None, b"key", b"not an event")
        await service.deliver("t1")
        assert await service.ended("t1") == {"t1": State.SUCCEEDED}

        async def counted() -> bool:
            return bool(service.app.counters.get("dead_letters") == 4)

        await service.until(counted)

        async def listed() -> bool:
            return len(await service.app.runtime.letters.page()) == 4

        await service.until(listed)
        assert {letter.raw for letter in await service.app.runtime.letters.page()} >= {"AP8=", None}
        counters = service.app.counters
        assert (counters["dropped_worker_status"], counters["dropped_task_events"]) == (1, 1)
        await service.until(lambda: committed(service))


async def test_urgent_work_is_taken_while_the_ordinary_look_ahead_is_full(start: Start) -> None:
    """The rest stays on the broker, also through a rebalance, and comes when there is room."""
    async with start(lookahead=10) as service:
        await service.ready()
        service.drawing.gate.clear()
        ids = [f"t{number:03}" for number in range(300)]
        await service.deliver(*ids)
        worker = service.app.runtime.worker

        async def pressed() -> bool:
            return bool(worker.backlog.under_pressure and service.drawing.running == 8)

        await service.until(pressed)
        service.drawing.capacity = 9
        await service.deliver("now", priority=0)

        async def joined() -> bool:
            return "now" in service.drawing.orders

        await service.until(joined)
        service.drawing.gate.set()
        states = await service.ended("now", *ids, within=60)
        assert set(states.values()) == {State.SUCCEEDED}
        await service.until(lambda: committed(service))


async def test_a_stop_hands_back_what_does_not_finish_and_a_new_start_draws_it(start: Start) -> None:
    async with start(drain=0.2) as service:
        await service.ready()
        service.drawing.gate.clear()
        await service.deliver("t1")

        async def running() -> bool:
            return bool(service.drawing.running == 1)

        await service.until(running)
        assert await service.stop() == STOPPED
    async with start() as service:
        assert await service_row(service) == (State.QUEUED, 0)
        assert await service.ended("t1") == {"t1": State.SUCCEEDED}


async def service_row(service: Service) -> tuple[State, int]:
    """State and attempts of task t1 as the new process finds it, before it draws."""
    service.drawing.gate.clear()

    async def opened() -> bool:
        return service.app._runtime is not None

    await service.until(opened)
    row = await service.app.runtime.tasks.get("t1")
    service.drawing.gate.set()
    assert row is not None
    return row.state, row.attempts


async def test_a_topic_with_other_partitions_than_the_settings_refuses_the_start(start: Start) -> None:
    async with start(partitions=2) as service:
        await service.ready()
    async with start(partitions=3) as service:
        assert await asyncio.wait_for(service.task, 20) == MISCONFIGURED


async def test_a_web_process_serves_before_there_is_a_broker(start: Start) -> None:
    async with start("web", broker="kafka://127.0.0.1:9") as service:

        async def serving() -> bool:
            return service.app._runtime is not None and service.app.port not in {0, 8000}

        await service.until(serving)
        address = f"http://127.0.0.1:{service.app.port}/no-such-page"
        async with aiohttp.ClientSession() as session, session.get(address) as answer:
            assert answer.status == 404
        assert not service.app.tables_ready
        assert await service.stop() == STOPPED


def test_a_second_signal_stops_at_once_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    process = Process(None)  # type: ignore[arg-type]
    process.on_signal(signal.SIGTERM)
    assert process.stopping.is_set()
    assert codes == []
    process.on_signal(signal.SIGTERM)
    assert codes == [143]
    assert len({STOPPED, INCOMPLETE, MISCONFIGURED, 1}) == 4


def test_partitions_are_values() -> None:
    """Faust's, aiokafka's and our partitions are one key in sets and dicts."""
    by_partition: dict[object, str] = {TP("a", 1): "found"}
    assert by_partition.get(faust.types.TP("a", 1)) == "found"


async def test_totals_wait_while_the_broker_takes_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process lives on, and the newest absolute values go out when the broker is back."""
    refused: list[str] = []
    async with start() as service:
        await service.ready()
        produce = service.app.produce

        async def down(topic: str, *rest: Any) -> tuple[int, int]:
            if topic == topics.THROUGHPUT_TOTALS:
                refused.append(topic)
                raise Unavailable("the broker does not answer")
            placed: tuple[int, int] = await produce(topic, *rest)
            return placed

        monkeypatch.setattr(service.app, "produce", down)
        await service.deliver("t1")
        await service.ended("t1")

        async def tried() -> bool:
            return len(refused) >= 2

        await service.until(tried)
        monkeypatch.undo()

        async def counted() -> bool:
            windows = read_models.throughput(service.app)
            return bool(sum(total["finished"] for total in windows if total["window"] == "hour") == 1)

        await service.until(counted)


async def test_a_stream_application_that_ends_by_itself_ends_the_process(start: Start) -> None:
    """Whoever supervises the process starts it again; a process that looks alive and takes nothing is worse."""
    async with start() as service:
        await service.ready()
        await service.app._fetcher.crash(RuntimeError("the fetcher died"))
        assert await asyncio.wait_for(service.task, 20) == CRASHED
