"""The user's side of a task: submit, look, cancel, replay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, func, select

from streamapp.db.census import Census
from streamapp.db.claims import CANCELLED_ERROR, idle
from streamapp.db.database import Database
from streamapp.db.endings import along, end_rows, lock_rows, update_tasks
from streamapp.db.replays import REPLAYED, WITHOUT_RESULT, Outcome, replay
from streamapp.db.rows import Cancel, Glimpse, ImageRow, NewTask, TaskRow, task_row
from streamapp.db.schema import images, tasks
from streamapp.db.states import ENDED, LIVE, State
from streamapp.db.submissions import Submissions


class Tasks:
    """Tasks as the people who submitted them see them. A ``user_id`` makes other users' tasks invisible."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._submissions = Submissions(database)
        self._census = Census(database, lambda: self._submissions.created)

    async def insert(self, new: NewTask) -> tuple[TaskRow, bool]:
        """Accept a task; its row, and whether it is new: the same user and idempotency key give the first one's row.

        The ``submitted`` event is written in the same transaction.

        Raises:
            Conflict: a task with this id exists.
            Unavailable: the database does not answer; nothing was accepted, or the answer was lost.
        """
        return await self._submissions.insert(new)

    async def get(self, task_id: str, user_id: str | None = None) -> TaskRow | None:
        """One task, or ``None``."""
        statement = select(tasks).where(tasks.c.id == task_id)
        if user_id is not None:
            statement = statement.where(tasks.c.user_id == user_id)
        row = await self._database.read(lambda connection: connection.execute(statement).first())
        return None if row is None else task_row(row)

    async def page(
        self, user_id: str | None = None, state: State | None = None, before: str | None = None, limit: int = 50
    ) -> list[TaskRow]:
        """Tasks, newest first; ``before`` is the last id of the page before."""
        statement = select(tasks).order_by(tasks.c.id.desc()).limit(limit)
        if user_id is not None:
            statement = statement.where(tasks.c.user_id == user_id)
        if state is not None:
            statement = statement.where(tasks.c.state == state)
        if state is not None and user_id is None:
            statement = along(statement, "state_id")
        if before is not None:
            statement = statement.where(tasks.c.id < before)
        return await self._database.read(lambda connection: [task_row(row) for row in connection.execute(statement)])

    async def images(self, task_ids: Collection[str]) -> dict[str, list[ImageRow]]:
        """The pictures of each task, in order; an empty list where there are none."""
        found: dict[str, list[ImageRow]] = {task_id: [] for task_id in task_ids}
        if not found:
            return found
        ordered = select(images).where(images.c.task_id.in_(sorted(found))).order_by(images.c.task_id, images.c.idx)
        for row in await self._database.read(lambda connection: connection.execute(ordered).all()):
            values: list[Any] = list(row)
            values[-1] = orjson.loads(values[-1])
            found[row.task_id].append(ImageRow(*values))
        return found

    async def cancel(self, task_id: str, user_id: str | None = None) -> Cancel:
        """Cancel a task: at once when nobody works on it, else it is asked for and certain.

        A worker that finishes after it was asked for gets :attr:`State.CANCELLED` for an answer.
        """

        def work(connection: Connection) -> Cancel:
            rows, now = lock_rows(connection, [task_id])
            row = rows.get(task_id)
            if row is None or (user_id is not None and row.user_id != user_id):
                return Cancel("missing", None)
            if row.state in ENDED:
                return Cancel("ended", row.state)
            if idle(row, now):
                end_rows(connection, [row], State.CANCELLED, now, CANCELLED_ERROR)
                return Cancel("cancelled", State.CANCELLED)
            if not row.cancel_requested:
                c = tasks.c
                asked = {c.cancel_requested: 1, c.version: c.version + 1}
                connection.execute(update_tasks([task_id]).where(c.state == State.RUNNING).values(asked))
            return Cancel("cancelling", State.RUNNING)

        return await self._database.write(work)

    async def watch(self, ids: Collection[str]) -> dict[str, Glimpse]:
        """State and progress of many tasks in one query; ids without a row are missing from the answer."""
        if not ids:
            return {}
        c = tasks.c
        statement = select(c.id, c.state, c.progress, c.version, c.cancel_requested).where(c.id.in_(sorted(ids)))
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        return {row[0]: Glimpse(row[0], State(row[1]), row[2], row[3], bool(row[4])) for row in rows}

    async def position(self, row: TaskRow) -> int:
        """How many queued tasks of the family go before this one; 0 when it does not wait. Exact up to 10,000."""
        return await self._census.position(row) if row.state is State.QUEUED else 0

    async def counts(self) -> dict[tuple[str, str, str], int]:
        """Tasks by state, family and model; at most as old as half a second or 20 times what counting takes."""
        return await self._census.counts()

    async def queued(self, limit: int) -> int:
        """Tasks queued, at most ``limit``: a count as old as that of :meth:`counts`, plus this process's own since."""
        return await self._census.queued(limit)

    async def naming(self, kind: Literal["model", "lora", "controlnet"], name: str) -> bool:
        """Whether a task that has not ended names this model (also as its fallback), LoRA or ControlNet."""
        c = tasks.c
        # Keys and values of the text that ``GenerationParams`` writes; quotes inside of prompts are escaped there.
        said = f'"{"model" if kind == "model" else "name"}":{orjson.dumps(name).decode()}'
        alive = select(c.id).where(c.state.in_(sorted(LIVE)), func.instr(c.params, said) > 0).limit(1)
        return await self._database.read(lambda connection: connection.scalar(alive)) is not None

    async def unproduced(
        self, states: Collection[State], since: int, after: str = "", limit: int = 500
    ) -> list[tuple[str, str, int]]:
        """Id, family and priority of tasks that ended so and never had a message: their weights did not come, say.

        Ordered by id, behind ``after``; ``since`` is the earliest end, in milliseconds.
        """
        c = tasks.c
        ended = (c.state.in_(sorted(states)), c.topic.is_(None), c.ended_at >= since, c.id > after)
        found = select(c.id, c.family, c.priority).where(*ended).order_by(c.id).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(found).all())
        return [(row.id, row.family, row.priority) for row in rows]

    async def replay(self, task_id: str) -> bool:
        """Queue an ended task without a result again; see :meth:`replay_many`.

        Returns ``False`` for a task that succeeded, has not ended or does not exist.
        """
        return (await self.replay_many([task_id]))[task_id] == REPLAYED

    async def replay_many(
        self,
        ids: Collection[str],
        *,
        states: Collection[State] = WITHOUT_RESULT,
        dropped: bool = True,
        dry_run: bool = False,
    ) -> dict[str, Outcome]:
        """Queue tasks again that ended in one of ``states``; see :func:`streamapp.db.replays.replay`.

        By task: replayed, missing, dropped, or the state that it has and keeps.
        """
        if not ids:
            return {}
        return await self._database.write(
            lambda connection: replay(connection, ids, states=states, dropped=dropped, dry_run=dry_run)
        )
