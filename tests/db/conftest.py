"""Both databases behind one set of fixtures: every test of the contract runs on each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamapp.db import Claims, Database, Delivery, Registry, Tasks, open_database, upgrade


@pytest.fixture(params=["sqlite", "mariadb"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'folder' / 'test.db'}"
    url: str = request.getfixturevalue("mariadb_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An upgraded database, open."""
    await upgrade(database_url)
    database = open_database(database_url)
    await database.start()
    yield database
    await database.close()


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
