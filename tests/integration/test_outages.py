"""A server goes away and comes back: what was accepted still ends once, what cannot be kept is refused, not lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import Rows
from tests.integration.fleet import Fleet, Member, until
from tests.integration.quick import QUICK, SLOW, logged, state
from tests.servers import S3, Kafka, MariaDB, Server


@pytest.fixture(autouse=True)
def servers_come_back(kafka: Kafka, mariadb: MariaDB, s3: S3) -> Iterator[None]:
    """The servers belong to all tests of the session: what a test stopped is started again."""
    yield
    server: Server
    for server in (kafka, mariadb, s3):
        if not server.running:
            server.start()


async def start(server: Server) -> None:
    """Start a server beside the running loop."""
    await asyncio.to_thread(server.start)


async def broker_goes_in_mid_run(fleet: Fleet, web: Member, kafka: Kafka, rows: Rows) -> None:
    """What the worker holds is drawn meanwhile, its claims stay alive, and nothing is drawn twice."""
    before = rows("SELECT COUNT(*) FROM tasks")[0][0]
    held = [await fleet.submit(web, SLOW, steps=60, seed=n) for n in range(3)]
    await state(fleet, web, held, "running")
    kafka.kill()
    began = time.monotonic()
    during = [await fleet.submit(web, "a plum", seed=n) for n in range(10)]
    assert time.monotonic() - began < 10, "the answer waits for the row, never for the broker"
    await state(fleet, web, held, "succeeded")
    await start(kafka)
    tasks = await fleet.finished(web, during, within=60)
    assert {task["status"] for task in tasks.values()} == {"succeeded"}
    assert set(rows("SELECT attempts, COUNT(*) FROM tasks GROUP BY attempts")) == {(1, before + 13)}


async def test_what_is_submitted_without_a_broker_is_delivered_in_order_when_it_comes(
    fleet: Fleet, kafka: Kafka, rows: Rows
) -> None:
    """Web accepts, the worker says that it waits; then the broker gets every task by priority and age."""
    kafka.kill()
    web, worker = fleet.start("web", "web", **QUICK), fleet.start("worker", "worker", **QUICK)
    await logged(worker, "waiting for the broker", within=60)
    await logged(web, "waiting for the broker", within=60)
    health = await fleet.json("GET", f"{worker.url}/readyz", status=503)
    assert health["checks"]["broker"]["ok"] is False
    ids = [await fleet.submit(web, "a pear", priority=n % 4, seed=n) for n in range(48)]
    assert set(rows("SELECT state, topic IS NULL FROM tasks")) == {("queued", 1)}
    assert worker.process.poll() is None
    await start(kafka)
    tasks = await fleet.finished(web, ids, within=60)
    assert {task["status"] for task in tasks.values()} == {"succeeded"}
    sent: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for topic, partition, priority, submitted in rows(
        "SELECT topic, `partition`, priority, submitted_at FROM tasks ORDER BY topic, `partition`, `offset`"
    ):
        sent.setdefault((topic, partition), []).append((priority, submitted))
    for order in sent.values():
        assert order == sorted(order)
    await broker_goes_in_mid_run(fleet, web, kafka, rows)


async def test_without_a_database_a_submit_is_refused_whole(fleet: Fleet, mariadb: MariaDB, rows: Rows) -> None:
    """503 with Retry-After; after the outage the same key makes one task, and running work ended unharmed."""
    web, worker = fleet.start("web", "web", **QUICK), fleet.start("worker", "worker", **QUICK)
    await fleet.ready(web, worker)
    held = [await fleet.submit(web, SLOW, steps=30, seed=n) for n in range(2)]
    await state(fleet, web, held, "running")
    mariadb.kill()
    body = {"text": "a fig", "params": {}, "idempotency_key": "fig-1"}
    for _ in range(3):
        async with fleet.session.post(f"{web.url}/api/v1/image/generate", json=body) as answer:
            assert answer.status == 503, await answer.text()
            assert int(answer.headers["Retry-After"]) >= 1
            assert (await answer.json())["code"] == "unavailable"
    async with fleet.session.get(f"{web.url}/api/v1/image/task/{held[0]}") as answer:
        assert answer.status == 503
        assert "Retry-After" in answer.headers
    await start(mariadb)

    async def accepted() -> Any:
        async with fleet.session.post(f"{web.url}/api/v1/image/generate", json=body) as answer:
            return (await answer.json())["data"]["task_id"] if answer.status == 200 else None

    fig = await until(accepted, within=30, what="submits are accepted again", log=web.log)
    assert await accepted() == fig
    tasks = await fleet.finished(web, [*held, fig], within=60)
    assert {task["status"] for task in tasks.values()} == {"succeeded"}
    assert rows("SELECT COUNT(*) FROM tasks") == ((3,),)
    assert rows("SELECT COUNT(*) FROM images") == ((3,),)


async def test_pictures_wait_for_the_storage_and_a_task_succeeds_only_then(fleet: Fleet, s3: S3, rows: Rows) -> None:
    """A storage outage costs no picture and no second drawing; drawing stops while too much waits."""
    web = fleet.start("web", "web", **QUICK)
    worker = fleet.start("worker", "worker", **QUICK, STREAMAPP_SPOOL_BYTES="1")
    await fleet.ready(web, worker)
    s3.kill()
    first = await fleet.submit(web, "a lime", seed=1)
    await logged(worker, "storage_waits", within=30)
    later = [await fleet.submit(web, "a lime", seed=n) for n in range(2, 8)]

    async def intake() -> bool:
        status = (await fleet.json("GET", f"{web.url}/api/v1/status"))["data"]
        return any(row["worker_id"] == "worker" and row["jobs"] == 7 for row in status["workers"])

    await until(intake, within=20, what="the worker holds all seven", log=worker.log)
    states = dict(rows("SELECT id, state FROM tasks"))
    assert states == {first: "running"} | dict.fromkeys(later, "queued")
    await start(s3)
    tasks = await fleet.finished(web, [first, *later], within=60)
    assert {(task["status"], task["attempts"]) for task in tasks.values()} == {("succeeded", 1)}
    for task in tasks.values():
        assert (await fleet.picture(web, task)).startswith(b"\x89PNG")


async def test_a_long_outage_of_the_broker_ends_no_process(fleet: Fleet, kafka: Kafka) -> None:
    """Faust's producer ends with the first record of a table that the broker does not take within ten seconds."""
    web = fleet.start("web", "web", **QUICK)
    first, second = (fleet.start("worker", name, **QUICK) for name in ("first", "second"))
    await fleet.ready(web, first, second)
    ids = [await fleet.submit(web, SLOW, steps=40, seed=seed) for seed in range(24)]
    await asyncio.to_thread(kafka.kill)
    try:
        await asyncio.sleep(25)
        assert [member.process.poll() for member in (web, first, second)] == [None, None, None]
    finally:
        await asyncio.to_thread(kafka.start)
    tasks = await fleet.finished(web, ids, within=90)
    assert {task["status"] for task in tasks.values()} == {"succeeded"}
