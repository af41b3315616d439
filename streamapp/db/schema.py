"""The tables, their indices and the database's clock.

Times are integer milliseconds of the database's own clock. Strings are ``utf8mb4_bin`` on MySQL, so ids and keys
compare by code point there as they do on SQLite, and any language fits.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
#: Longest task id, user id and the like; four bytes a character, so that every index stays below InnoDB's 3,072.
ID = String(64)
KEY = String(200)
#: JSON is kept as text: written and read whole, never queried into.
JsonText = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
Serial = BigInteger().with_variant(Integer(), "sqlite")


class now_ms(FunctionElement[int]):  # noqa: N801  (reads as the SQL function it stands for)
    """The database's clock in milliseconds since 1970, the same expression on both databases."""

    name = "now_ms"
    inherit_cache = True
    type = BigInteger()


@compiles(now_ms, "sqlite")
def _now_sqlite(*_: object, **__: object) -> str:
    return "CAST((julianday('now')-2440587.5)*86400000 AS INTEGER)"


@compiles(now_ms, "mysql")
@compiles(now_ms, "mariadb")
def _now_mysql(*_: object, **__: object) -> str:
    return "CAST(UNIX_TIMESTAMP(NOW(3))*1000 AS SIGNED)"


def _weights(name: str) -> Table:
    """``models`` and ``loras`` have the same columns."""
    return Table(
        name,
        metadata,
        Column("name", KEY, primary_key=True),
        Column("version", String(100), primary_key=True),
        Column("family", ID, nullable=False),
        Column("source", Text, nullable=False),
        Column("path", Text, nullable=False),
        Column("digest", ID, nullable=False, index=True),
        Column("size", BigInteger, nullable=False),
        Column("traits", JsonText, nullable=False),
        Column("added_at", BigInteger, nullable=False),
        Column("last_used_at", BigInteger),
        **MYSQL,
    )


models = _weights("models")
loras = _weights("loras")

tasks = Table(
    "tasks",
    metadata,
    Column("id", ID, primary_key=True),
    Column("user_id", KEY, nullable=False),
    Column("idempotency_key", KEY),
    Column("state", String(16), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("family", ID, nullable=False),
    Column("model", KEY, nullable=False),
    Column("params", JsonText, nullable=False),
    Column("request", JsonText, nullable=False),
    Column("cost", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("claim_token", ID),
    Column("claimed_by", KEY),
    Column("lease_until", BigInteger),
    Column("not_before", BigInteger),
    Column("cancel_requested", SmallInteger, nullable=False),
    Column("progress", Double, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("error", JsonText),
    Column("history", JsonText, nullable=False),
    Column("timings", JsonText, nullable=False),
    Column("submitted_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("deadline_at", BigInteger),
    Column("callback_url", Text),
    Column("trace", KEY),
    Column("produce_at", BigInteger),
    Column("topic", KEY),
    Column("partition", Integer),
    Column("offset", BigInteger),
    UniqueConstraint("user_id", "idempotency_key"),
    # A user's tasks, newest first (ids sort by time).
    Index(None, "user_id", "id"),
    # Tasks by state, newest first; the reconciler's walk.
    Index(None, "state", "id"),
    # Queue positions and counts, from the index alone.
    Index(None, "state", "family", "priority", "submitted_at", "model"),
    # What the outbox has to produce, in order of priority and age.
    Index(None, "priority", "produce_at"),
    # What ran out of time.
    Index(None, "state", "deadline_at"),
    **MYSQL,
)

images = Table(
    "images",
    metadata,
    Column("task_id", ID, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("idx", Integer, primary_key=True),
    Column("key", String(400), nullable=False),
    Column("content_type", String(100), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("digest", ID, nullable=False),
    Column("recipe", JsonText, nullable=False),
    **MYSQL,
)

#: Records for ``task_events``, written with the change they tell of and deleted once they are on the topic.
outbox = Table(
    "outbox",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("key", ID, nullable=False),
    Column("body", JsonText, nullable=False),
    **MYSQL,
    # Without it SQLite hands out a deleted row's number again, and two readers could mean different events by it.
    sqlite_autoincrement=True,
)

callbacks = Table(
    "callbacks",
    metadata,
    Column("event_id", KEY, primary_key=True),
    Column("task_id", ID, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("body", JsonText, nullable=False),
    Column("attempts", Integer, nullable=False),
    # NULL: delivered or given up.
    Column("next_at", BigInteger, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("error", Text),
    **MYSQL,
)

#: Pictures that were sent in; their files are in the storage under their digest.
inputs = Table(
    "inputs",
    metadata,
    Column("digest", ID, primary_key=True),
    Column("content_type", String(100), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("used_at", BigInteger, nullable=False, index=True),
    **MYSQL,
)

#: Who does a job that only one process may do.
leases = Table(
    "leases",
    metadata,
    Column("name", KEY, primary_key=True),
    Column("holder", KEY, nullable=False),
    Column("until", BigInteger, nullable=False),
    **MYSQL,
)

#: What could not be worked off: a failed task (its facts stay in ``tasks``), or a message that nobody could read.
dead_letters = Table(
    "dead_letters",
    metadata,
    # The task's id, or ``topic:partition:offset``.
    Column("id", KEY, primary_key=True),
    Column("task_id", ID, ForeignKey("tasks.id", ondelete="CASCADE"), index=True),
    Column("user_id", KEY),
    Column("state", String(16), nullable=False),
    Column("reason", KEY, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    # Of an unreadable message only.
    Column("message", Text),
    Column("topic", KEY),
    Column("partition", Integer),
    Column("offset", BigInteger),
    Column("raw", JsonText),
    Column("size", BigInteger),
    # What is open, newest first.
    Index(None, "state", "at", "id"),
    **MYSQL,
)
