"""Inserting tasks: what many clients submit at the same moment travels in one transaction.

A lone submit waits for nobody. While one transaction is under way the next ones gather, so that under load the cost
of a task is its share of a bulk INSERT instead of four round trips.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Insert, and_, insert, or_, select
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.exc import IntegrityError

from streamapp.clock import Clock
from streamapp.db.database import Database
from streamapp.db.events import event_of, write_events
from streamapp.db.rows import NewTask, TaskRow, dump, task_row
from streamapp.db.schema import tasks
from streamapp.db.states import State
from streamapp.errors import AppError, Conflict, Unavailable

#: Most tasks of one transaction. More would save little more, and the last of many waits for all of them.
TOGETHER = 32

#: Seconds between two readings of the database's clock: what it drifts meanwhile is far below a millisecond.
CLOCK_INTERVAL = 5.0

Answer = tuple[TaskRow, bool]
#: Every column, for those that a new task has no value for.
EMPTY: Final = dict.fromkeys(tasks.c.keys())


class Submissions:
    """The queue of tasks to insert, and the one task that empties it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clock = Clock(database.now, CLOCK_INTERVAL)
        self._waiting: deque[tuple[NewTask, asyncio.Future[Answer]]] = deque()
        self._writer: asyncio.Task[None] | None = None
        #: Tasks created by this process.
        self.created = 0

    async def insert(self, new: NewTask) -> Answer:
        """Insert one task; see :meth:`streamapp.db.Tasks.insert`."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((new, answer))
        if self._writer is None or self._writer.done():
            self._writer = self._database.background(self._write(), "submissions")
        return await answer

    async def _write(self) -> None:
        """Write what waits until nothing does; ends then, so there is nothing to close."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
            try:
                await self._write_together(batch)
            except asyncio.CancelledError:
                for _, future in (*batch, *self._waiting):
                    future.cancel()
                self._waiting.clear()
                raise

    async def _write_together(self, batch: Sequence[tuple[NewTask, asyncio.Future[Answer]]]) -> None:
        """Insert a batch in one transaction."""
        try:
            await self._clock.sync()
            now, rows = self._clock.now(), [new for new, _ in batch]
            answers = await self._database.write(lambda connection: write(connection, rows, now))
        except Unavailable as error:
            for _, future in batch:
                _refuse(future, error)
        except Exception:  # noqa: BLE001  one bad row must not take the others with it: alone, each gets its own error
            for new, future in batch:
                await self._write_alone(new, future)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                self._settle(future, answer)

    async def _write_alone(self, new: NewTask, future: asyncio.Future[Answer]) -> None:
        """Insert one task of a batch that failed."""
        try:
            now = self._clock.now()
            [answer] = await self._database.write(lambda connection: write(connection, [new], now))
        except IntegrityError as error:
            conflict = Conflict(f"a task with the id {new.id} exists", task_id=new.id)
            conflict.__cause__ = error
            _refuse(future, conflict)
        except Exception as error:  # noqa: BLE001  handed to the caller who waits for it
            _refuse(future, error)
        else:
            self._settle(future, answer)

    def _settle(self, future: asyncio.Future[Answer], answer: Answer) -> None:
        self.created += answer[1]
        if not future.done():  # the caller may have gone; the task stays accepted
            future.set_result(answer)


def _refuse(future: asyncio.Future[Answer], error: Exception) -> None:
    """Tell one caller; each gets an exception of its own, as tracebacks grow while they are raised."""
    if future.done():
        return
    if isinstance(error, Unavailable):
        fresh: AppError = Unavailable(error.message, **error.details)
        fresh.__cause__ = error
        future.set_exception(fresh)
    else:
        future.set_exception(error)


def write(connection: Connection, batch: Sequence[NewTask], now: int) -> list[Answer]:
    """Insert a batch with its ``submitted`` events; per task its row and whether it is new. ``now``: the database's."""
    values = {new.id: _values(new, now) for new in batch}
    plain = [values[new.id] for new in batch if new.idempotency_key is None]
    if plain:
        connection.execute(insert(tasks), plain)
    keyed = sorted(
        (new for new in batch if new.idempotency_key is not None), key=lambda new: (new.user_id, new.idempotency_key)
    )
    first = _insert_keyed(connection, keyed, values) if keyed else {}
    answers = [_answer(new, values[new.id], first) for new in batch]
    write_events(
        connection,
        (event_of(new, "submitted", now, 1) for new, (_, created) in zip(batch, answers, strict=True) if created),
    )
    return answers


def _insert_keyed(
    connection: Connection, keyed: Sequence[NewTask], values: dict[str, dict[str, object]]
) -> dict[tuple[str, str | None], TaskRow]:
    """Insert tasks unless their user and key exist; the row of each user and key."""
    connection.execute(_insert_unless_known(connection), [values[new.id] for new in keyed])
    c = tasks.c
    wanted = [and_(c.user_id == user, c.idempotency_key == key) for user, key in _pairs(keyed)]
    found = connection.execute(select(tasks).where(or_(*wanted)))
    return {(row.user_id, row.idempotency_key): task_row(row) for row in found}


def _pairs(keyed: Sequence[NewTask]) -> list[tuple[str, str | None]]:
    """Each user and key once, in order."""
    return list(dict.fromkeys((new.user_id, new.idempotency_key) for new in keyed))


def _insert_unless_known(connection: Connection) -> Insert:
    """The INSERT that leaves an existing user and key alone. IGNORE would also swallow values that do not fit."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(tasks).on_conflict_do_nothing(index_elements=["user_id", "idempotency_key"])
    return mysql.insert(tasks).on_duplicate_key_update(id=tasks.c.id)


def _answer(new: NewTask, values: dict[str, object], first: dict[tuple[str, str | None], TaskRow]) -> Answer:
    """The row of one task of the batch."""
    if new.idempotency_key is None:
        return _fresh(new, values), True
    row = first.get((new.user_id, new.idempotency_key))
    if row is None:
        raise Conflict(f"a task with the id {new.id} exists", task_id=new.id)
    return row, row.id == new.id


def _values(new: NewTask, now: int) -> dict[str, object]:
    """The columns that a new task has: always the same ones, as others would make another statement of it."""
    return {
        "id": new.id,
        "user_id": new.user_id,
        "idempotency_key": new.idempotency_key,
        "state": (State.FETCHING if new.fetching else State.QUEUED).value,
        "priority": new.priority,
        "family": new.family,
        "model": new.model,
        "params": new.params.model_dump_json(exclude_none=True),
        "request": dump(new.request),
        "cost": new.cost,
        "attempts": 0,
        "max_attempts": new.max_attempts,
        "cancel_requested": 0,
        "progress": 0.0,
        "version": 1,
        "history": "[]",
        "timings": "{}",
        "submitted_at": now,
        "deadline_at": None if new.deadline_ms is None else now + new.deadline_ms,
        "callback_url": new.callback_url,
        "trace": new.trace,
        "produce_at": None if new.fetching else now + new.produce_delay_ms,
    }


def _fresh(new: NewTask, values: dict[str, object]) -> TaskRow:
    """The row as it was written, without reading it back."""
    row = {
        **EMPTY,
        **values,
        "state": State(str(values["state"])),
        "params": new.params,
        "request": new.request,
        "cancel_requested": False,
        "history": (),
        "timings": {},
    }
    return TaskRow(**row)  # type: ignore[arg-type]  # every column by name, from _values
