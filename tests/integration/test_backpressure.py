"""More work than a worker, or the service, may hold: it waits on the broker or is refused, and nothing is dropped."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.integration.conftest import Rows
from tests.integration.fleet import Fleet, Member, until
from tests.integration.quick import QUICK, SLOW

LOOKAHEAD = 20
#: Polls of 100 records that are on their way to the Backlog when a partition is put on hold; Faust's queue bounds them.
IN_FLIGHT = 700


async def worker_row(fleet: Fleet, web: Member) -> dict[str, Any]:
    """The worker as the status view shows it."""
    status = (await fleet.json("GET", f"{web.url}/api/v1/status"))["data"]
    return next((row for row in status["workers"] if row["role"] == "worker"), {})


async def test_a_full_backlog_holds_the_rest_on_the_broker(fleet: Fleet, rows: Rows) -> None:
    """Lag grows and the worker's memory does not; statuses and urgent tasks pass; in the end all are drawn once."""
    web = fleet.start("web", "web", **QUICK)
    worker = fleet.start("worker", "worker", **QUICK, STREAMAPP_LOOKAHEAD=str(LOOKAHEAD))
    await fleet.ready(web, worker)
    many = 1_500
    gate = asyncio.Semaphore(50)

    async def submit(number: int) -> str:
        async with gate:
            return await fleet.submit(web, SLOW, steps=2, seed=number, priority=3)

    ids = await asyncio.gather(*(submit(number) for number in range(many)))

    async def full() -> bool:
        return bool((await worker_row(fleet, web)).get("full"))

    await until(full, within=20, what="the worker says that it is full", log=worker.log)
    urgent = await fleet.submit(web, "a plum", priority=0)
    most, ages, queued = 0, [], many
    while queued > 100:
        row = await worker_row(fleet, web)
        most = max(most, row["jobs"])
        ages.append(time.time() - datetime.fromisoformat(row["at"]).timestamp())
        queued = rows("SELECT COUNT(*) FROM tasks WHERE state = 'queued'")[0][0]
        if queued > many // 2:
            assert row["jobs"] < queued + 64, "the rest waits on the broker"
        await asyncio.sleep(0.2)
    assert most <= LOOKAHEAD + IN_FLIGHT
    assert max(ages) < 6, "statuses go on"
    tasks = await fleet.finished(web, [urgent], within=1)
    ahead = rows(f"SELECT COUNT(*) FROM tasks WHERE ended_at < {ended(rows, urgent)}")[0][0]
    assert tasks[urgent]["status"] == "succeeded"
    assert ahead < many // 2, "an urgent task does not wait behind what is held"

    async def done() -> bool:
        return rows("SELECT COUNT(*) FROM tasks WHERE ended_at IS NULL") == ((0,),)

    await until(done, within=60, what="all tasks end", log=worker.log)
    assert rows("SELECT state, attempts, COUNT(*) FROM tasks GROUP BY state, attempts") == (
        ("succeeded", 1, len(ids) + 1),
    )


def ended(rows: Rows, task_id: str) -> int:
    """When a task ended, in database milliseconds."""
    return int(rows(f"SELECT ended_at FROM tasks WHERE id = '{task_id}'")[0][0])


async def test_a_full_service_says_when_to_come_again(tmp_path: Path) -> None:
    """429 with Retry-After above the limit; what was accepted is drawn, and then there is room again."""
    env = {"STREAMAPP_DATA_DIR": str(tmp_path / "data"), **QUICK, "STREAMAPP_MAX_QUEUED": "20"}
    async with Fleet(env, tmp_path) as fleet:
        service = fleet.start("up", "up")
        await fleet.ready(service, within=60)
        accepted: list[str] = []
        refused: list[tuple[str, Any]] = []

        async def submit(number: int) -> None:
            body = {"text": SLOW, "params": {"seed": number, "steps": 20}}
            async with fleet.session.post(f"{service.url}/api/v1/image/generate", json=body) as answer:
                data = await answer.json()
                if answer.status == 429:
                    refused.append((answer.headers["Retry-After"], data))
                else:
                    assert answer.status == 200, data
                    accepted.append(data["data"]["task_id"])

        for number in range(60):
            await submit(number)
        assert 20 <= len(accepted) < 60
        assert {(int(after) > 0, data["code"]) for after, data in refused} == {(True, "overloaded")}
        before = len(refused)
        await asyncio.gather(*(submit(number) for number in range(30)))
        assert len(refused) > before
        tasks = await fleet.finished(service, accepted, within=60)
        assert {task["status"] for task in tasks.values()} == {"succeeded"}
        before = len(accepted)
        await submit(99)
        assert len(accepted) == before + 1
