"""The server is killed in mid-work: nothing is half done, what was answered is there, and work goes on afterwards."""

from __future__ import annotations

import asyncio

from sqlalchemy import func, select

from streamapp.db import Claims, Delivery, NewTask, TaskRow, Tasks, open_database, upgrade
from streamapp.db.schema import outbox, tasks
from streamapp.errors import Unavailable
from tests.db.support import end, new
from tests.servers import MariaDB


async def test_a_killed_server_loses_nothing_that_was_answered(mariadb: MariaDB, mariadb_url: str) -> None:
    await upgrade(mariadb_url)
    database = open_database(mariadb_url)
    users, claims, delivery = Tasks(database), Claims(database), Delivery(database)
    await asyncio.gather(*(users.insert(new(f"before-{i:02}")) for i in range(20)))
    running = await claims.claim([f"before-{i:02}" for i in range(20)], "w1", 15)
    answered: list[str] = []
    refused: list[Unavailable] = []

    async def submit(task: NewTask) -> None:
        try:
            row, _ = await users.insert(task)
        except Unavailable as error:
            refused.append(error)
        else:
            answered.append(row.id)

    async def go_on() -> None:
        for wave in range(1000):
            await asyncio.gather(*(submit(new(f"wave-{wave:03}-{i}")) for i in range(5)))
            if refused:
                return

    async def kill() -> None:
        while not answered:
            await asyncio.sleep(0)
        await asyncio.to_thread(mariadb.kill)

    try:
        await asyncio.gather(go_on(), kill())
        assert refused
        assert all(error.details["retry_after"] > 0 for error in refused)
    finally:
        await asyncio.to_thread(mariadb.start)
    await patiently_finish(claims, running)
    there = {row.id for row in await users.page(limit=1000)}
    assert set(answered) <= there
    # One event for each task that exists, and one for each end: no transaction was cut in two.
    events = await database.read(lambda connection: connection.scalar(select(func.count()).select_from(outbox)))
    rows = await database.read(lambda connection: connection.scalar(select(func.count()).select_from(tasks)))
    assert events == (rows or 0) + len(running)
    assert await delivery.lease("outbox", "p1", 15)
    await database.close()


async def patiently_finish(claims: Claims, rows: list[TaskRow]) -> None:
    """Say the ends until they are heard, as a worker does; saying them twice is harmless."""
    for _ in range(20):
        try:
            ended = await claims.finish([end(row) for row in rows])
        except Unavailable:
            await asyncio.sleep(0.1)
            continue
        assert all(ended.values())
        assert await claims.finish([end(row) for row in rows]) == ended
        return
    raise AssertionError("the database did not come back")
