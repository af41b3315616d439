"""Bring a database to the schema of this release; safe to run from several processes at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from streamapp.db.database import Database, open_database
from streamapp.db.failures import Meaning, meaning, unavailable
from streamapp.errors import Unavailable

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: Seconds to wait for another process's upgrade.
TURN: Final = 120
TRIES: Final = 20


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; the scripts lie in the package, so it works wherever that is installed."""
    from alembic.config import Config  # as below: most processes never upgrade anything

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


async def upgrade(url: str) -> None:
    """Create or upgrade the tables; returns at once when they are current, waits while another process is at it.

    Raises:
        Unavailable: the database does not answer, or another upgrade took more than two minutes.
    """
    database = open_database(url)
    await database.start()
    try:
        for attempt in range(1, TRIES + 1):
            try:
                async with _turn(database) as connection:
                    await connection.run_sync(_run)
                return
            except Exception as error:
                kind = meaning(error)
                if kind is Meaning.MISTAKE:
                    raise
                # Turning a new SQLite file to WAL mode does not wait for its turn, it fails.
                if kind is not Meaning.COLLISION or attempt == TRIES:
                    raise unavailable(error, database.name) from error
            await asyncio.sleep(0.05 * attempt)
    finally:
        await database.close()


async def revision(url: str) -> str | None:
    """The schema's revision, ``None`` for an empty database."""
    from alembic.runtime.migration import MigrationContext

    database = open_database(url)
    await database.start()
    try:
        return await database.read(lambda connection: MigrationContext.configure(connection).get_current_revision())
    finally:
        await database.close()


def _run(connection: Connection) -> None:
    """Upgrade over a connection that has its turn."""
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


@asynccontextmanager
async def _turn(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection while no other process upgrades this database."""
    _, writer = database.engines
    if database.sqlite:
        # BEGIN IMMEDIATE is the turn: DDL is transactional here, and the next one finds the tables made.
        async with writer.begin() as connection:
            yield connection
        return
    # DDL commits by itself on MySQL: the turn is a named lock, held by a connection that does nothing else.
    async with writer.connect() as guard, writer.connect() as connection:
        name = f"streamapp_upgrade:{database.url.database}"[:64]
        if not await guard.scalar(text("SELECT GET_LOCK(:name, :turn)"), {"name": name, "turn": TURN}):
            raise Unavailable("another process has been upgrading the database for two minutes", retry_after=60)
        try:
            yield connection
        finally:
            await guard.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": name})
