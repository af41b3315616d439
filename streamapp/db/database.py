"""Connections and transactions: one reader and one writer engine over SQLite or MySQL.

Work is a plain function of a SQLAlchemy ``Connection``. It runs on the event loop's thread, but every wait in it is
a switch to the loop (SQLAlchemy's greenlets), so a whole transaction costs one hand-over instead of one per statement.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, event, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from streamapp.db.failures import Meaning, meaning, unavailable
from streamapp.db.schema import now_ms
from streamapp.errors import ConfigError, Unavailable

T = TypeVar("T")

#: Transactions are short; one that lasts longer than this (seconds) hangs on a dead network.
PATIENCE: Final = 30.0
#: Tries after deadlocks, lock time-outs and SQLITE_BUSY; with the jitter below about 3 s in all.
TRIES: Final = 10
CONNECTIONS: Final = 8
#: A connection used within this many seconds is taken to be alive.
FRESH: Final = 2.0


class Database:
    """One database; safe to use from many tasks of one event loop.

    Connection failures surface as :class:`streamapp.errors.Unavailable` with ``retry_after``; collisions (deadlock,
    lock time-out, SQLITE_BUSY) are retried with jitter, and are ``Unavailable`` only after about 3 s of them.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.name = url.render_as_string(hide_password=True)
        self.sqlite = url.get_backend_name() == "sqlite"
        make = _sqlite_engines if self.sqlite else _mysql_engines
        self._reader, self._writer = make(url)
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def engines(self) -> tuple[AsyncEngine, AsyncEngine]:
        """Reader and writer, to listen to."""
        return self._reader, self._writer

    async def start(self) -> None:
        """Make room for a database file. Connects to nothing: a service starts without its database and says so."""
        if self.sqlite and self.url.database and not self.url.database.startswith(":memory:"):
            folder = Path(self.url.database).parent
            try:
                await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            except OSError as error:
                raise unavailable(error, self.name) from error

    def background(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start work that nobody may be waiting for; :meth:`close` lets it end first."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """Let background work end (5 s at most), then close every connection; what comes later is ``Unavailable``."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=5)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._closed = True
        await self._reader.dispose()
        await self._writer.dispose()

    async def ping(self) -> None:
        """Ask the database something; raise :class:`Unavailable` when it does not answer."""
        await self.now()

    async def now(self) -> int:
        """The database's clock, in milliseconds."""
        return await self.read(lambda connection: int(connection.scalar(select(now_ms())) or 0))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work(connection)``, which only reads; every statement sees what is committed when it starts."""

        async def once() -> T:
            async with self._reader.connect() as connection:
                return await _lost_is_known(connection.run_sync(work))

        return await self._patiently(once)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work(connection)`` in one transaction; it may run several times, so it must have no other effects."""

        async def once() -> T:
            async with self._writer.begin() as connection:
                return await _lost_is_known(connection.run_sync(work))

        return await self._patiently(once)

    async def write_singly(self, work: Callable[[Connection], T]) -> T:
        """Run ``work(connection)``, each statement of which commits by itself: one round trip less than :meth:`write`.

        It may run several times, also after a statement of it took effect: saying it again must do no harm, and what
        it returns must be right then. SQLite has no round trips and writes as ever.
        """
        if self.sqlite:
            return await self.write(work)
        return await self.read(work)

    async def _patiently(self, once: Callable[[], Awaitable[T]]) -> T:
        """Retry collisions with jitter, turn the rest into the error a caller understands."""
        if self._closed:
            raise Unavailable(f"the database {self.name} is closed here: this process is stopping")
        for attempt in range(1, TRIES + 1):
            try:
                async with asyncio.timeout(PATIENCE):
                    return await once()
            except _Lost as lost:
                # A pooled connection may have died while it rested: the pool has dropped it and its like by now.
                if attempt > 1:
                    raise unavailable(lost.error, self.name) from lost.error
                continue
            except Exception as error:  # classified, and raised again unless it is known
                kind = meaning(error)
                if kind is Meaning.MISTAKE:
                    raise
                if kind is not Meaning.COLLISION or attempt == TRIES:
                    raise unavailable(error, self.name) from error
            await asyncio.sleep(random.uniform(0.2, 1.0) * min(0.6, 0.005 * 2**attempt))
        raise AssertionError("unreachable: the last try returns or raises")


class _Lost(Exception):
    """The connection went away before COMMIT was sent, so nothing was done."""

    def __init__(self, error: DBAPIError) -> None:
        super().__init__(str(error))
        self.error = error


async def _lost_is_known(work: Awaitable[T]) -> T:
    try:
        return await work
    except DBAPIError as error:
        if error.connection_invalidated:
            raise _Lost(error) from error
        raise


def open_database(url: str) -> Database:
    """A database by its URL, ``sqlite+aiosqlite:///PATH`` or ``mysql+aiomysql://user:password@host/name``.

    Raises:
        ConfigError: for any other URL.
    """
    parsed = make_url(url)
    if parsed.drivername not in {"sqlite+aiosqlite", "mysql+aiomysql"}:
        raise ConfigError(
            f"the database must be sqlite+aiosqlite:///PATH or mysql+aiomysql://user:password@host/name, "
            f"not {parsed.drivername}://…",
            field="STREAMAPP_DATABASE",
        )
    return Database(parsed)


def _sqlite_engines(url: URL) -> tuple[AsyncEngine, AsyncEngine]:
    """Several readers beside one writer: in WAL mode they do not wait for each other, and writers queue in order."""
    if not url.database or url.database.startswith((":memory:", "file::memory:")):
        raise ConfigError(
            "an SQLite database in memory has no second connection: give a path", field="STREAMAPP_DATABASE"
        )
    # isolation_level None leaves BEGIN to us: a deferred one fails with SQLITE_BUSY where an immediate one waits.
    options: dict[str, Any] = {
        "connect_args": {"isolation_level": None, "timeout": 5.0},
        "pool_reset_on_return": None,
        "pool_timeout": PATIENCE,
    }
    reader = create_async_engine(url, pool_size=4, max_overflow=0, skip_autocommit_rollback=True, **options)
    writer = create_async_engine(url, pool_size=1, max_overflow=0, **options)
    for engine in (reader, writer):
        event.listen(engine.sync_engine, "connect", _sqlite_pragmas)
    event.listen(writer.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return reader, writer


def _sqlite_pragmas(connection: Any, _: object) -> None:
    """Settings of one connection. FULL: an accepted task survives a power cut, at one fsync per transaction."""
    cursor = connection.cursor()
    for pragma in (
        "busy_timeout=5000",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "cache_size=-16384",
        "temp_store=MEMORY",
        "journal_size_limit=67108864",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _mysql_engines(url: URL) -> tuple[AsyncEngine, AsyncEngine]:
    """Readers in autocommit, so that a poll never sees an old snapshot; writers in READ COMMITTED."""
    # UTC, because UNIX_TIMESTAMP(NOW()) is ambiguous in the hour when summer time ends; strict, because a value
    # that does not fit must fail and not be cut.
    session = "SET SESSION time_zone='+00:00', innodb_lock_wait_timeout=5, sql_mode='STRICT_TRANS_TABLES,NO_ZERO_DATE'"
    options: dict[str, Any] = {
        "connect_args": {"charset": "utf8mb4", "connect_timeout": 5, "init_command": session},
        "pool_recycle": 300,
        "pool_size": CONNECTIONS,
        # The one used last: it need not be asked whether it is alive, and the database has its things at hand.
        "pool_use_lifo": True,
        "max_overflow": 0,
        "pool_timeout": PATIENCE,
        # Every use here ends its transaction by itself: the pool's ROLLBACK would be one more round trip.
        "pool_reset_on_return": None,
    }
    reader = create_async_engine(url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, **options)
    writer = create_async_engine(url, isolation_level="READ COMMITTED", **options)
    for engine in (reader, writer):
        event.listen(engine.sync_engine, "checkin", _note_use)
        event.listen(engine.sync_engine, "checkout", _ping_if_idle)
    return reader, writer


def _note_use(_: Any, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def _ping_if_idle(connection: Any, record: Any, _: Any) -> None:
    """Ask a connection that rested whether it is alive; one just used costs no round trip."""
    used_at = record.info.get("used_at")
    if used_at is None or time.monotonic() - used_at < FRESH:
        return
    try:
        connection.ping(reconnect=False)
    except Exception as error:  # whatever it is, the pool opens another connection
        raise DisconnectionError("a connection that rested is gone") from error
