"""Tasks that wait for weights: what of them is on its way, what has arrived, what will never come."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, select

from streamapp.db.claims import HISTORY
from streamapp.db.database import Database
from streamapp.db.endings import along, chunks, each, end_rows, lock_rows, update_tasks
from streamapp.db.rows import TaskRow, dump, task_row
from streamapp.db.schema import now_ms, tasks
from streamapp.db.states import State
from streamapp.generation import GenerationParams

_C = tasks.c
_FETCHING = _C.state == State.FETCHING


class Arrivals:
    """The side of whoever fetches; every change is a compare-and-set on ``fetching``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting(self, limit: int) -> list[TaskRow]:
        """Tasks that wait for weights, the oldest first."""
        oldest = along(select(tasks), "state_id").where(_FETCHING).order_by(_C.id).limit(limit)
        return await self._database.read(lambda connection: [task_row(row) for row in connection.execute(oldest)])

    async def beat(self, shares: Mapping[str, float]) -> None:
        """Note by task how much of its weights is here, 0..1."""

        def work(connection: Connection) -> None:
            for part in chunks(sorted(shares)):
                here = each(_C.progress, {task_id: shares[task_id] for task_id in part})
                values = {_C.progress: here, _C.version: _C.version + 1}
                connection.execute(update_tasks(part).where(_FETCHING).values(values))

        if shares:
            await self._database.write(work)

    async def arrived(self, ids: Collection[str]) -> None:
        """Queue tasks whose weights are here, to be produced now."""

        def work(connection: Connection) -> None:
            for part in chunks(sorted(ids)):
                connection.execute(update_tasks(part).where(_FETCHING).values(_queued()))

        if ids:
            await self._database.write(work)

    async def failed(self, ids: Collection[str], error: Mapping[str, Any]) -> None:
        """End tasks whose weights cannot be had, each with its event, callback and letter."""

        def work(connection: Connection) -> None:
            rows, now = lock_rows(connection, ids)
            end_rows(
                connection, (row for row in rows.values() if row.state is State.FETCHING), State.FAILED, now, error
            )

        if ids:
            await self._database.write(work)

    async def fall_back(self, task_id: str, params: GenerationParams, cost: float, error: Mapping[str, Any]) -> None:
        """Queue a task with other parameters, because its own weights cannot be had; that joins its history."""

        def work(connection: Connection) -> None:
            rows, now = lock_rows(connection, [task_id])
            row = rows.get(task_id)
            if row is None or row.state is not State.FETCHING:
                return
            values: dict[Any, Any] = {
                **_queued(),
                _C.history: dump([*row.history, {"attempt": row.attempts, "at": now, **error}][-HISTORY:]),
                _C.params: params.model_dump_json(exclude_none=True),
                _C.cost: cost,
                _C.model: params.model,
                _C.family: params.family,
            }
            connection.execute(update_tasks([task_id]).where(_FETCHING).values(values))

        await self._database.write(work)


def _queued() -> dict[Any, Any]:
    return {
        _C.state: State.QUEUED.value,
        _C.progress: 0.0,
        _C.produce_at: now_ms(),
        _C.version: _C.version + 1,
    }
