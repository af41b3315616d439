"""MariaDB from the distribution's packages, on a temporary data folder."""

from __future__ import annotations

import getpass
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql

from tests.servers.install import command, program
from tests.servers.process import Server

PACKAGES = ["mariadb-server-core", "mariadb-client-core"]
OTHERWISE = "Install MariaDB (Debian: mariadb-server-core mariadb-client-core; macOS: brew install mariadb)."


def install() -> Path:
    """The server's program; its set-up script comes in the same package."""
    program("mariadb-install-db", packages=PACKAGES, otherwise=OTHERWISE)
    return program("mariadbd", packages=PACKAGES, otherwise=OTHERWISE)


class MariaDB(Server):
    """One server on ``127.0.0.1`` with a user who may create databases."""

    name = "mariadb"
    user = "streamapp"

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.password = secrets.token_hex(8)
        self._created = 0

    @property
    def url(self) -> str:
        """Address of the default database, ``streamapp``."""
        return self.database_url("streamapp")

    def database_url(self, database: str) -> str:
        """The address of ``database`` as ``STREAMAPP_DATABASE`` takes it."""
        login = f"{self.user}:{self.password}@127.0.0.1:{self.port}"
        return f"mysql+aiomysql://{login}/{database}?charset=utf8mb4"

    def create_database(self, database: str | None = None) -> str:
        """Create an empty database and answer its address; without a name under a fresh one."""
        self._created += 1
        database = database or f"test_{self._created}_{secrets.token_hex(3)}"
        self.execute(f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4")
        return self.database_url(database)

    def drop_database(self, url: str) -> None:
        """Remove the database that ``create_database`` answered with ``url``."""
        database = url.rsplit("/", 1)[1].partition("?")[0]
        self.execute(f"DROP DATABASE IF EXISTS `{database}`")

    def execute(self, statement: str, url: str | None = None) -> Sequence[Any]:
        """Run one statement as the test user, in the database of ``url``; its rows."""
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            if url is not None:
                connection.select_db(url.rsplit("/", 1)[1].partition("?")[0])
            cursor.execute(statement)
            rows: Sequence[Any] = cursor.fetchall()
        return rows

    def _connect(self) -> Any:
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=self.user, password=self.password, autocommit=True, connect_timeout=5
        )

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except pymysql.MySQLError:
            return False
        return True

    def _prepare(self) -> None:
        install()
        initialise = program("mariadb-install-db", packages=PACKAGES, otherwise=OTHERWISE)
        data = self.folder / "data"
        command(
            [
                initialise,
                "--no-defaults",
                f"--datadir={data}",
                f"--user={getpass.getuser()}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            what="mariadb-install-db",
        )
        # Run at each start, as the server's root: the only way in that needs no other client.
        statements = [
            f"CREATE OR REPLACE USER '{self.user}'@'127.0.0.1' IDENTIFIED BY '{self.password}';",
            f"GRANT ALL ON *.* TO '{self.user}'@'127.0.0.1';",
            "CREATE DATABASE IF NOT EXISTS streamapp CHARACTER SET utf8mb4;",
            # Fresh data folders have a root without a password.
            f"ALTER USER 'root'@'localhost' IDENTIFIED BY '{self.password}';",
        ]
        init = self.folder / "init.sql"
        init.touch(mode=0o600)
        init.write_text("\n".join(statements) + "\n")

    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        return [
            install(),
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--init-file={self.folder / 'init.sql'}",
            f"--user={getpass.getuser()}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--max-connections=500",
            "--innodb-buffer-pool-size=64M",
            # Survives a kill of the process, which is what tests do; only a power cut would lose a second.
            "--innodb-flush-log-at-trx-commit=2",
        ], {}
