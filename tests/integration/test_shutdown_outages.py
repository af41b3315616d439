"""A stop while a server is away ends in time all the same, and its exit code says whether all could be written."""

from __future__ import annotations

import asyncio
import signal

from tests.integration.conftest import Rows
from tests.integration.fleet import Fleet, until
from tests.integration.quick import QUICK, SLOW, state
from tests.servers import Kafka, MariaDB


async def test_with_the_broker_down_a_stop_ends_in_time_and_a_second_signal_at_once(
    fleet: Fleet, kafka: Kafka, rows: Rows
) -> None:
    """Faust and aiokafka by themselves hang for minutes here, and ignore the second signal."""
    web = fleet.start("web", "web", **QUICK)
    first = fleet.start("worker", "first", **QUICK, STREAMAPP_DRAIN="2")
    second = fleet.start("worker", "second", **QUICK, STREAMAPP_DRAIN="60")
    await fleet.ready(web, first, second)
    for seed in range(24):
        await fleet.submit(web, SLOW, steps=140, seed=seed)

    async def both_draw() -> bool:
        return {worker for (worker,) in rows("SELECT DISTINCT claimed_by FROM tasks")} >= {"first", "second"}

    await until(both_draw, within=30, what="both workers draw", log=web.log)
    await asyncio.to_thread(kafka.kill)
    try:
        first.signal(signal.SIGTERM)
        second.signal(signal.SIGTERM)
        await asyncio.sleep(1)
        assert second.process.poll() is None
        second.signal(signal.SIGTERM)
        assert await second.ended(within=2) == 128 + signal.SIGTERM
        assert await first.ended(within=2 + 25) in {0, 3}
        assert rows("SELECT COUNT(*) FROM tasks WHERE claimed_by = 'first' AND state = 'running'") == ((0,),)
        web.signal(signal.SIGTERM)
        assert await web.ended(within=25) in {0, 3}
        waiting = fleet.start("worker", "waiting", **QUICK)

        async def waits() -> bool:
            return "waiting for the broker" in waiting.log.read_text()

        await until(waits, within=30, what="a worker waits for the broker", log=waiting.log)
        waiting.signal(signal.SIGTERM)
        assert await waiting.ended(within=15) == 0
    finally:
        await asyncio.to_thread(kafka.start)


async def test_with_the_database_down_a_stop_ends_in_time_and_says_that_it_is_incomplete(
    fleet: Fleet, mariadb: MariaDB
) -> None:
    """What could not be handed back is drawn by others once its lease is over."""
    web = fleet.start("web", "web", **QUICK)
    first = fleet.start("worker", "first", **QUICK, STREAMAPP_DRAIN="2")
    await fleet.ready(web, first)
    ids = [await fleet.submit(web, SLOW, steps=100, seed=seed) for seed in range(3)]
    await state(fleet, web, ids, "running")
    await asyncio.to_thread(mariadb.kill)
    try:
        first.signal(signal.SIGTERM)
        assert await first.ended(within=2 + 25) == 3
    finally:
        await asyncio.to_thread(mariadb.start)
    second = fleet.start("worker", "second", **QUICK)
    tasks = await fleet.finished(web, ids, within=60)
    assert {(task["status"], task["worker_id"], task["attempts"]) for task in tasks.values()} == {
        ("succeeded", second.name, 2)
    }
