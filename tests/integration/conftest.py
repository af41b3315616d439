"""One fleet on real servers for all tests here: starting four torch processes on two cores takes most of the time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet import PARTITIONS, Fleet
from tests.servers import MariaDB

#: The rows of a query of this test's database.
Rows = Callable[[str], tuple[Any, ...]]


@pytest.fixture
def rows(mariadb: MariaDB, mariadb_url: str) -> Rows:
    """What the database says, past the service."""
    return lambda query: tuple(mariadb.execute(query, mariadb_url))


@pytest.fixture
async def fleet(tmp_path: Path, kafka_url: str, mariadb_url: str, s3_env: dict[str, str]) -> AsyncIterator[Fleet]:
    """A fleet on Kafka, MariaDB and S3, topics created and the database upgraded through the CLI."""
    env = {
        "STREAMAPP_BROKER": kafka_url,
        "STREAMAPP_DATABASE": mariadb_url,
        "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
        "STREAMAPP_APP_ID": f"fleet-{tmp_path.name}",
        "STREAMAPP_PARTITIONS": PARTITIONS,
        **s3_env,
    }
    async with Fleet(env, tmp_path) as members:
        for arguments in (("topics", "create"), ("db", "upgrade")):
            process = members.command(*arguments)
            code = process.wait(120)
            assert code == 0, (tmp_path / f"{'-'.join(arguments)}.log").read_text()
        yield members
