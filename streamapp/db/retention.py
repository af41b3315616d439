"""Ended tasks that nobody keeps any longer: found oldest first, forgotten row by row with all that hangs on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, delete, exists, select

from streamapp.db.database import Database
from streamapp.db.endings import along, lock_rows
from streamapp.db.schema import callbacks, images, tasks
from streamapp.db.states import ENDED, State
from streamapp.ids import first_id_at


@dataclass(frozen=True, slots=True)
class Past:
    """A task that may be forgotten: its pictures' keys by index, and how many it asked for.

    ``drawn`` is whether a worker ever had it: then there may be pictures in the storage that no row names.
    """

    task_id: str
    state: State
    n: int
    drawn: bool
    keys: Mapping[int, str]


class Retention:
    """What is older than it is kept; times are the database's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ended_before(self, state: State, age_s: float, after_id: str, limit: int) -> list[Past]:
        """Tasks that ended in ``state`` more than ``age_s`` seconds ago, by id; not those with a webhook to deliver."""
        cutoff = await self._database.now() - int(age_s * 1000)
        c = tasks.c
        undelivered = exists().where(callbacks.c.task_id == c.id, callbacks.c.next_at.is_not(None))
        # Ids sort by the time of the submit, which is before the end: the walk along (state, id) stops there.
        old = (c.state == state.value, c.id > after_id, c.id < first_id_at(cutoff), c.ended_at < cutoff)
        oldest = along(select(c.id, c.params, c.attempts), "state_id").where(*old, ~undelivered)

        def work(connection: Connection) -> list[Past]:
            found = connection.execute(oldest.order_by(c.id).limit(limit)).all()
            keys = _keys(connection, [row.id for row in found])
            return [
                Past(row.id, state, int(orjson.loads(row.params).get("n", 1)), row.attempts > 0, keys.get(row.id, {}))
                for row in found
            ]

        return await self._database.read(work)

    async def forget(self, ids: Collection[str], age_s: float) -> int:
        """Delete those of ``ids`` that are still ended and as old, with pictures, webhooks and letters; how many."""

        def work(connection: Connection) -> int:
            rows, now = lock_rows(connection, ids)
            cutoff = now - int(age_s * 1000)
            gone = sorted(
                row.id
                for row in rows.values()
                if row.state in ENDED and row.ended_at is not None and row.ended_at < cutoff
            )
            # The rest goes by its foreign keys.
            return connection.execute(delete(tasks).where(tasks.c.id.in_(gone))).rowcount if gone else 0

        return await self._database.write(work) if ids else 0


def _keys(connection: Connection, ids: Collection[str]) -> dict[str, dict[int, str]]:
    """The storage keys of tasks' pictures, by task and index."""
    found: dict[str, dict[int, str]] = {}
    if ids:
        columns: tuple[Any, ...] = (images.c.task_id, images.c.idx, images.c.key)
        for task_id, index, key in connection.execute(select(*columns).where(images.c.task_id.in_(sorted(ids)))):
            found.setdefault(task_id, {})[index] = key
    return found
