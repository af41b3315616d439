"""Both databases behind one set of fixtures: every test of the contract runs on each."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete

from streamapp.db import Claims, Database, Delivery, Registry, Tasks, open_database, upgrade
from streamapp.db.schema import metadata
from tests.servers import MariaDB

KINDS = ["sqlite", "mariadb"]


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind, without tables."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'folder' / 'test.db'}"
    url: str = request.getfixturevalue("mariadb_url")
    return url


def upgrade_apart(url: str) -> None:
    """Upgrade in a thread: the fixtures that need it are made while a test's event loop runs."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(upgrade(url))).result()


@pytest.fixture(scope="session")
def upgraded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with tables, to be copied: an upgrade for every test takes longer than most tests."""
    path = tmp_path_factory.mktemp("upgraded") / "test.db"
    upgrade_apart(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def upgraded_server(mariadb: MariaDB) -> str:
    """A MariaDB database with tables, emptied after every test."""
    url = mariadb.create_database()
    upgrade_apart(url)
    return url


@pytest.fixture(params=KINDS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database of either kind with empty tables, open."""
    if request.param == "sqlite":
        path = shutil.copy(request.getfixturevalue("upgraded_file"), tmp_path / "test.db")
        database = open_database(f"sqlite+aiosqlite:///{path}")
    else:
        database = open_database(request.getfixturevalue("upgraded_server"))
    await database.start()
    yield database
    if not database.sqlite:
        await database.write(empty)
    await database.close()


def empty(connection: Connection) -> None:
    """Delete every row."""
    for table in reversed(metadata.sorted_tables):
        connection.execute(delete(table))


@pytest.fixture
def tasks(database: Database) -> Tasks:
    """The user's side."""
    return Tasks(database)


@pytest.fixture
def claims(database: Database) -> Claims:
    """The worker's side."""
    return Claims(database)


@pytest.fixture
def delivery(database: Database) -> Delivery:
    """The outbox's side."""
    return Delivery(database)


@pytest.fixture
def registry(database: Database) -> Registry:
    """Models and LoRAs."""
    return Registry(database)
