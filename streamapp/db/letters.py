"""The ``dead_letters`` table: what could not be worked off, until somebody replays or drops it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from streamapp.db.claims import HISTORY
from streamapp.db.database import Database
from streamapp.db.endings import lock_rows, update_tasks
from streamapp.db.events import OPEN
from streamapp.db.replays import DROPPED, REPLAYED, failures, replay
from streamapp.db.rows import dump, task_row
from streamapp.db.schema import dead_letters, now_ms, tasks
from streamapp.db.states import State
from streamapp.records import DeadLetter

STATES: Final = (OPEN, REPLAYED, DROPPED)
#: Letters about unreadable messages that are kept, newest first; those about tasks live as long as their rows.
UNREADABLE_KEPT: Final = 10_000
#: Too many are looked for at every so manyth offset: a flood must not cost a walk for each.
PRUNE_EVERY: Final = 64
_C, _T = dead_letters.c, tasks.c


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter; ``raw`` is base64, ``size`` the bytes of the message, times in database milliseconds.

    ``task_id`` is ``None`` for a message that nobody could read, ``raw`` and ``size`` for everything else.
    """

    id: str
    state: str
    reason: str
    message: str
    at: int
    task_id: str | None = None
    user_id: str | None = None
    ended_at: int | None = None
    attempts: int = 0
    history: tuple[dict[str, Any], ...] = ()
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    raw: str | None = None
    size: int | None = None


class DeadLetters:
    """List, replay and drop. A ``user_id`` makes other users' letters, and those of nobody, invisible."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, user_id: str | None = None, state: str | None = OPEN, before: str | None = None, limit: int = 50
    ) -> list[Letter]:
        """Letters, newest first; ``before`` is the last id of the page before."""
        statement = _letters().order_by(_C.at.desc(), _C.id.desc()).limit(limit)
        if user_id is not None:
            statement = statement.where(_C.user_id == user_id)
        if state is not None:
            statement = statement.where(_C.state == state)
        if before is not None:
            last = select(_C.at).where(_C.id == before).scalar_subquery()
            statement = statement.where(or_(_C.at < last, and_(_C.at == last, _C.id < before)))
        return await self._database.read(lambda connection: [_letter(row) for row in connection.execute(statement)])

    async def get(self, letter_id: str, user_id: str | None = None) -> Letter | None:
        """One letter, or ``None``; a task's letter is found by the task's id."""
        statement = _letters().where(_C.id == letter_id)
        if user_id is not None:
            statement = statement.where(_C.user_id == user_id)
        row = await self._database.read(lambda connection: connection.execute(statement).first())
        return None if row is None else _letter(row)

    async def counts(self) -> dict[str, int]:
        """Letters by state."""
        counted = select(_C.state, func.count()).group_by(_C.state)
        return await self._database.read(lambda connection: {row[0]: row[1] for row in connection.execute(counted)})

    async def replay(self, ids: Collection[str], user_id: str | None = None) -> dict[str, str]:
        """Queue the tasks of open letters again: ``replayed``, ``missing``, ``unreadable`` or ``already …`` each."""

        def work(connection: Connection) -> dict[str, str]:
            found = _find(connection, ids, user_id)
            open_ = {i for i, row in found.items() if row.state == OPEN and row.task_id is not None}
            done = replay(connection, open_) if open_ else {}
            return {i: str(done[i]) if i in done else _why_not(found.get(i)) for i in ids}

        return await self._database.write(work) if ids else {}

    async def drop(self, ids: Collection[str], user_id: str | None = None) -> dict[str, str]:
        """Close open letters for good; by letter ``dropped``, or ``missing``, ``already …``. The rows say so."""

        def work(connection: Connection) -> dict[str, str]:
            found = _find(connection, ids, user_id)
            chosen = sorted(i for i, row in found.items() if row.state == OPEN)
            now = connection.scalar(select(now_ms())) or 0
            if chosen:
                closed = update(dead_letters).where(_C.id.in_(chosen), _C.state == OPEN)
                connection.execute(closed.values({_C.state: DROPPED, _C.ended_at: now}))
                _note_drop(connection, [found[i].task_id for i in chosen if found[i].task_id is not None], now)
            return {i: DROPPED if i in chosen else _why_not(found.get(i)) for i in ids}

        return await self._database.write(work) if ids else {}

    async def keep(self, letter: DeadLetter, kept_s: float) -> bool:
        """List a message that nobody could read; whether it was new. Those older than ``kept_s`` seconds go."""
        letter_id = f"{letter.topic}:{letter.partition}:{letter.offset}"[:200]
        values = {
            "id": letter_id, "state": OPEN, "reason": letter.reason[:200], "message": letter.message, "at": letter.at,
            "topic": letter.topic[:200], "partition": letter.partition, "offset": letter.offset, "raw": letter.raw,
            "size": letter.size,
        }  # fmt: skip

        def work(connection: Connection) -> bool:
            if connection.scalar(select(_C.id).where(_C.id == letter_id)) is not None:
                return False
            connection.execute(insert(dead_letters).values(values))
            if letter.offset % PRUNE_EVERY == 0:
                _prune(connection, int(kept_s * 1000))
            return True

        try:
            return await self._database.write(work)
        except IntegrityError:  # another process was first
            return False


def _letters() -> Select[Any]:
    """Letters with the rows of their tasks beside them."""
    return select(tasks, *(column.label(f"letter_{column.name}") for column in _C)).select_from(
        dead_letters.outerjoin(tasks, _C.task_id == _T.id)
    )


def _letter(row: Row[Any]) -> Letter:
    """One row of :func:`_letters` as a value: what a task's letter leaves out is in its task."""
    facts: dict[str, Any] = {column.name: getattr(row, f"letter_{column.name}") for column in _C}
    if facts["task_id"] is not None:
        task = task_row(row)
        past = failures(task)
        last: dict[str, Any] = next(
            (entry for entry in reversed(past) if "message" in entry and entry.get("code") != REPLAYED), {}
        )
        facts |= {"attempts": task.attempts, "history": tuple(past), "message": str(last.get("message", ""))}
        facts |= {"topic": task.topic, "partition": task.partition, "offset": task.offset}
    facts["message"] = facts["message"] or ""
    return Letter(**facts)


def _find(connection: Connection, ids: Collection[str], user_id: str | None) -> dict[str, Any]:
    statement = select(_C.id, _C.state, _C.task_id).where(_C.id.in_(sorted(ids))).with_for_update()
    if user_id is not None:
        statement = statement.where(_C.user_id == user_id)
    return {row.id: row for row in connection.execute(statement)}


def _why_not(row: Any) -> str:
    if row is None:
        return "missing"
    return "unreadable" if row.state == OPEN else f"already {row.state}"


def _note_drop(connection: Connection, task_ids: Collection[str], now: int) -> None:
    """The row of a dropped task says so too."""
    rows, _ = lock_rows(connection, task_ids)
    c = tasks.c
    for row in rows.values():
        note = {"code": DROPPED, "message": "dropped from the dead letters: it stays failed", "at": now}
        # The version stays: it names the event, and the callback, of the end.
        values: dict[Any, Any] = {c.history: dump([*row.history, note][-HISTORY:])}
        connection.execute(update_tasks([row.id]).where(c.state == State.FAILED).values(values))


def _prune(connection: Connection, kept_ms: int) -> None:
    """Unreadable messages are kept as long as their topics are, and never more than so many."""
    unreadable = _C.task_id.is_(None)
    connection.execute(delete(dead_letters).where(unreadable, _C.at < now_ms() - kept_ms))
    edge = select(_C.at).where(unreadable).order_by(_C.at.desc()).offset(UNREADABLE_KEPT).limit(1)
    oldest = connection.scalar(edge)
    if oldest is not None:
        connection.execute(delete(dead_letters).where(unreadable, _C.at <= oldest))
