"""Transactions: retried when they collide, undone when they fail, honest when the database is gone."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from streamapp.db import Claims, Database, Delivery, Tasks, open_database, upgrade
from streamapp.db.schema import tasks as table
from streamapp.errors import ConfigError, Unavailable
from tests.db.support import claim, new


async def test_the_clock_is_that_of_the_world(database: Database) -> None:
    before = time.time() * 1000
    assert before - 5 <= await database.now() <= time.time() * 1000 + 5


async def test_the_clock_does_not_care_for_time_zones(mariadb_url: str) -> None:
    database = open_database(mariadb_url)
    zone = await database.read(lambda connection: connection.scalar(text("SELECT @@session.time_zone")))
    assert zone == "+00:00"
    await database.close()


async def test_a_failed_transaction_leaves_nothing(database: Database, tasks: Tasks) -> None:
    await tasks.insert(new("t1"))

    def half(connection: Connection) -> None:
        connection.execute(update(table).values({table.c.cost: 99.0}))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write(half)
    row = await tasks.get("t1")
    assert row is not None
    assert row.cost == 1.5


async def test_mistakes_are_not_retried(database: Database) -> None:
    tries = 0

    def wrong(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        connection.execute(text("INSERT INTO leases (name, holder, until) VALUES ('a', 'b', NULL)"))

    with pytest.raises((IntegrityError, OperationalError)):
        await database.write(wrong)
    assert tries == 1


async def test_a_value_that_does_not_fit_is_refused_and_not_cut(mariadb_url: str) -> None:
    await upgrade(mariadb_url)
    database = open_database(mariadb_url)
    with pytest.raises(Exception, match="Data too long"):
        await Tasks(database).insert(new("t" * 65))
    assert await Tasks(database).page() == []
    await database.close()


async def test_deadlocks_are_retried(database: Database, tasks: Tasks) -> None:
    for name in ("a", "b"):
        await tasks.insert(new(name))
    met = [0]

    def both(first: str, second: str) -> Any:
        def work(connection: Connection) -> None:
            met[0] += 1
            for name in (first, second):
                connection.execute(update(table).where(table.c.id == name).values({table.c.cost: table.c.cost + 1}))
                connection.scalar(select(func.count()).select_from(table))

        return work

    await asyncio.gather(*(database.write(both(*pair)) for _ in range(20) for pair in (("a", "b"), ("b", "a"))))
    assert {row.id: row.cost for row in await tasks.page()} == {"a": 41.5, "b": 41.5}
    assert met[0] >= 40


async def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    await upgrade(url)
    database = open_database(url)
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    submitting = asyncio.create_task(Tasks(database).insert(new("t1")))
    # Readers go on while somebody writes.
    assert await Tasks(database).get("t1") is None
    assert not submitting.done()
    other.execute("COMMIT")
    assert (await submitting)[1]
    other.close()
    await database.close()


async def test_a_file_is_in_wal_mode_and_survives_power_cuts(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    await upgrade(url)
    database = open_database(url)

    def pragmas(connection: Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.scalar(text(f"PRAGMA {name}")) for name in names]

    assert await database.read(pragmas) == ["wal", 2, 1, 5000]
    assert await database.write(pragmas) == ["wal", 2, 1, 5000]
    await database.close()


async def test_a_server_reads_committed_rows_only(mariadb_url: str) -> None:
    database = open_database(mariadb_url)

    def session(connection: Connection) -> list[Any]:
        names = ("tx_isolation", "autocommit", "character_set_client")
        return [connection.scalar(text(f"SELECT @@session.{name}")) for name in names]

    assert (await database.write(session)) == ["READ-COMMITTED", 0, "utf8mb4"]
    assert (await database.read(session))[1:] == [1, "utf8mb4"]
    await database.close()


async def test_an_absent_server_is_unavailable_everywhere_and_keeps_its_password() -> None:
    database = open_database("mysql+aiomysql://ana:hush-hush@127.0.0.1:1/nothing")
    await database.start()
    calls = [
        database.ping(),
        Tasks(database).insert(new("t1")),
        Tasks(database).get("t1"),
        Tasks(database).queued(5),
        Claims(database).claim(["t1"], "w1", 15),
        Delivery(database).due(5),
    ]
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, Unavailable)
        assert error.details["retry_after"] > 0
        assert "127.0.0.1" in error.message
        assert "hush-hush" not in error.message
    await database.close()


async def test_a_connection_that_the_server_closed_is_replaced(mariadb_url: str) -> None:
    await upgrade(mariadb_url)
    database = open_database(mariadb_url)
    number = text("SELECT CONNECTION_ID()")
    victims = [
        await database.read(lambda connection: connection.scalar(number)),
        await database.write(lambda connection: connection.scalar(number)),
    ]
    other = open_database(mariadb_url)
    for victim in victims:
        await other.read(lambda connection, victim=victim: connection.execute(text(f"KILL {victim}")).rowcount)  # type: ignore[misc]
    await other.close()
    assert (await Tasks(database).insert(new("t1")))[1]
    assert await Tasks(database).get("t1") is not None
    await database.close()


async def test_a_connection_lost_in_mid_transaction_is_unavailable(mariadb_url: str) -> None:
    await upgrade(mariadb_url)
    database = open_database(mariadb_url)

    def suicide(connection: Connection) -> None:
        connection.execute(text("KILL CONNECTION_ID()"))
        connection.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        await database.write(suicide)
    await database.ping()
    await database.close()


async def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    database = open_database(f"sqlite+aiosqlite:///{tmp_path / 'folder.db'}")
    await database.start()
    with pytest.raises(Unavailable):
        await database.ping()
    await database.close()


@pytest.mark.parametrize(
    "url", ["sqlite:///a.db", "postgresql://x/y", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_database(url)


async def test_a_caller_that_is_cancelled_leaves_the_pool_usable(
    database: Database, tasks: Tasks, claims: Claims
) -> None:
    await tasks.insert(new("t1"))
    for _ in range(5):
        working = asyncio.create_task(claims.claim(["t1"], "w1", 15))
        await asyncio.sleep(0)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    await database.ping()
    await asyncio.wait_for(tasks.insert(new("t2")), 10)
    await claim(claims, "t2")
