"""Migrations make the schema of the code, from wherever the package lies, and once for several processes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from streamapp.db import Tasks, open_database, revision, upgrade
from streamapp.db.schema import metadata
from streamapp.db.upgrade import alembic_config
from streamapp.errors import Unavailable
from tests.db.support import new

UPGRADE = "import asyncio, sys; from streamapp.db import upgrade; asyncio.run(upgrade(sys.argv[1]))"


async def test_migrations_make_the_schema_of_the_code(database_url: str) -> None:
    assert await revision(database_url) is None
    await upgrade(database_url)
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert await revision(database_url) == head

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    database = open_database(database_url)
    assert await database.read(differences) == []
    await database.close()


async def test_indices_and_constraints_have_the_names_of_the_code(database_url: str) -> None:
    await upgrade(database_url)

    def names(connection: Connection) -> set[str | None]:
        found = inspect(connection)
        return {
            name
            for table in metadata.tables
            for name in (
                *(index["name"] for index in found.get_indexes(table)),
                *(unique["name"] for unique in found.get_unique_constraints(table)),
            )
        }

    database = open_database(database_url)
    made = await database.read(names)
    await database.close()
    wanted = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    assert made == wanted | {"uq_tasks_user_id_idempotency_key"}


async def test_upgrading_again_keeps_what_is_there(database_url: str) -> None:
    await upgrade(database_url)
    database = open_database(database_url)
    await Tasks(database).insert(new("t1"))
    await upgrade(database_url)
    assert await Tasks(database).get("t1") is not None
    await database.close()


async def test_processes_that_start_together_upgrade_once(database_url: str, tmp_path: Path) -> None:
    # From another folder: the scripts come with the package.
    running = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", UPGRADE, database_url, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(4)
    ]
    outcomes = [(await process.communicate())[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, outcomes
    assert await revision(database_url) == ScriptDirectory.from_config(alembic_config()).get_current_head()


async def test_tables_are_made_for_any_language(mariadb_url: str) -> None:
    await upgrade(mariadb_url)
    database = open_database(mariadb_url)
    query = text(
        "SELECT DISTINCT collation_name FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND collation_name IS NOT NULL AND table_name <> 'alembic_version'"
    )
    assert await database.read(lambda connection: list(connection.scalars(query))) == ["utf8mb4_bin"]
    engines = text("SELECT DISTINCT engine FROM information_schema.tables WHERE table_schema = DATABASE()")
    assert await database.read(lambda connection: list(connection.scalars(engines))) == ["InnoDB"]
    await database.close()


async def test_an_interrupted_upgrade_is_taken_up_again(database_url: str) -> None:
    await upgrade(database_url)
    database = open_database(database_url)

    def forget(connection: Connection) -> None:
        # As MySQL leaves it, where DDL commits by itself: tables made, version not written, one index missing.
        connection.execute(text("DELETE FROM alembic_version"))
        connection.execute(text("DROP TABLE leases"))
        on = " ON tasks" if connection.dialect.name != "sqlite" else ""
        connection.execute(text(f"DROP INDEX ix_tasks_state_id{on}"))

    await database.write(forget)
    await upgrade(database_url)

    def names(connection: Connection) -> set[str | None]:
        return {index["name"] for index in inspect(connection).get_indexes("tasks")}

    assert "ix_tasks_state_id" in await database.read(names)
    assert await database.read(lambda connection: inspect(connection).has_table("leases"))
    await database.close()


async def test_an_unreachable_server_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await upgrade("mysql+aiomysql://u:secret@127.0.0.1:1/nothing")
