"""What a driver's exception means: try again, not reachable, or a mistake of ours."""

from __future__ import annotations

from enum import Enum

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from streamapp.errors import Unavailable

#: Deadlock, lock wait time-out, record changed since the snapshot: the transaction was or will be rolled back whole.
MYSQL_COLLISIONS = frozenset({1205, 1213, 1020})
#: Cannot connect or lost the connection (2xxx), refused or shutting down, read-only, disk full.
MYSQL_ABSENT = frozenset(
    {1021, 1040, 1044, 1045, 1049, 1053, 1077, 1079, 1129, 1130, 1152, 1159, 1161, 1203, 1290, 1927}
)
MYSQL_NO_TABLE = 1146
#: SQLITE_BUSY and SQLITE_LOCKED.
SQLITE_COLLISIONS = frozenset({5, 6})
#: SQLITE_PERM, READONLY, IOERR, FULL, CANTOPEN, NOTADB.
SQLITE_ABSENT = frozenset({3, 8, 10, 13, 14, 26})


class Meaning(Enum):
    """How the database layer answers an exception."""

    COLLISION = "collision"
    ABSENT = "absent"
    NOT_UPGRADED = "not_upgraded"
    MISTAKE = "mistake"


def meaning(error: BaseException) -> Meaning:
    """Classify an exception raised while connecting, executing or committing."""
    if isinstance(error, PoolTimeout | TimeoutError | OSError):
        return Meaning.ABSENT
    if not isinstance(error, DBAPIError):
        return Meaning.MISTAKE
    original = error.orig
    sqlite_code = getattr(original, "sqlite_errorcode", None)
    if isinstance(sqlite_code, int):
        return _sqlite(sqlite_code & 0xFF, str(original))
    code = original.args[0] if original is not None and original.args else None
    number = code if isinstance(code, int) else 0
    # A driver that lost its connection in mid-flight raises errors without a number.
    nameless = isinstance(error, OperationalError | InterfaceError) and not number
    return Meaning.ABSENT if error.connection_invalidated or nameless else _mysql(number)


def _mysql(code: int) -> Meaning:
    """The server's error number; those from 2000 to 2099 are the driver's own, about connections."""
    if code in MYSQL_COLLISIONS:
        return Meaning.COLLISION
    if code in MYSQL_ABSENT or 2000 <= code < 2100:
        return Meaning.ABSENT
    return Meaning.NOT_UPGRADED if code == MYSQL_NO_TABLE else Meaning.MISTAKE


def _sqlite(code: int, message: str) -> Meaning:
    """The primary result code says it all, but for a missing table, which is a plain SQLITE_ERROR."""
    if code in SQLITE_COLLISIONS:
        return Meaning.COLLISION
    if code in SQLITE_ABSENT:
        return Meaning.ABSENT
    return Meaning.NOT_UPGRADED if message.startswith("no such table") else Meaning.MISTAKE


def unavailable(error: BaseException, where: str) -> Unavailable:
    """The error a caller sees when the database cannot be used; ``where`` names it without its password."""
    if meaning(error) is Meaning.NOT_UPGRADED:
        return Unavailable(f"the database {where} has not been set up: run `streamapp db upgrade`", retry_after=30)
    cause = getattr(error, "orig", None) or error
    text = str(cause) or type(cause).__name__
    if meaning(error) is Meaning.COLLISION:
        return Unavailable(f"the database {where} is too busy: {text}", retry_after=1)
    return Unavailable(f"the database {where} does not answer: {text}", retry_after=5)
