"""The SQLite file behind the embedded log: its tables, how it is opened, and how headers are stored."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import orjson

from streamapp.errors import ConfigError

VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (
    name TEXT PRIMARY KEY, partitions INTEGER NOT NULL, config TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partitions (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL, UNIQUE (topic, number)
);
CREATE TABLE IF NOT EXISTS records (
    partition INTEGER NOT NULL, offset INTEGER NOT NULL, timestamp INTEGER NOT NULL,
    key BLOB, value BLOB, headers BLOB,
    PRIMARY KEY (partition, offset)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (
    consumer_group TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, partition)
) WITHOUT ROWID;
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection in autocommit mode, usable from the one thread that will own it.

    ``synchronous=NORMAL`` in WAL mode writes a commit to the operating system without waiting for the disk: it
    survives the death of this process (kill -9), not a power cut, which may take back the last commits (never
    tear one). See https://www.sqlite.org/pragma.html#pragma_synchronous.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA journal_size_limit={64 * 1024**2}")
        connection.execute("PRAGMA cache_size=-16384")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _unreadable(path, error) from error
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables of a new file; raises ``ConfigError`` for a file of another program or a later version."""
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise ConfigError(f"{path} was written by a newer version (format {version}, this one reads {VERSION})")
        if version == 0 and connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            raise ConfigError(f"{path} is a database of another program: name another data folder")
        connection.executescript(SCHEMA)
        connection.execute(f"PRAGMA user_version={VERSION}")
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} cannot be opened as the log of the embedded broker ({error}): move it away")


def live_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold data: freed pages are used again, so the file does not grow by them."""
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return (pages - free) * size


def pack_headers(headers: Iterable[tuple[str, bytes | None]]) -> bytes | None:
    """Headers as one blob (JSON; bytes as Latin-1, which is reversible); ``None`` for no headers."""
    pairs = [(name, None if value is None else value.decode("latin-1")) for name, value in headers]
    return orjson.dumps(pairs) if pairs else None


def unpack_headers(blob: bytes | None) -> tuple[tuple[str, bytes | None], ...]:
    """The inverse of :func:`pack_headers`."""
    if blob is None:
        return ()
    return tuple((name, None if value is None else value.encode("latin-1")) for name, value in orjson.loads(blob))


def config_text(config: Mapping[str, str]) -> str:
    """A topic's configuration as it is stored."""
    return orjson.dumps(dict(config), option=orjson.OPT_SORT_KEYS).decode()
