"""The worker's side: claims, leases, progress and ends, all in bulk."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from streamapp.db.claiming import LEASE, claim_any, claim_as_submitted
from streamapp.db.database import Database
from streamapp.db.endings import (
    IDS,
    UNCACHED,
    Ending,
    chunks,
    each,
    end_rows,
    lock_facts,
    lock_rows,
    update_tasks,
    write_endings,
)
from streamapp.db.rows import End, Held, TaskRow, dump
from streamapp.db.schema import now_ms, tasks
from streamapp.db.states import ENDED, PENDING, State, may
from streamapp.generation import GenerationParams

#: Failed attempts kept in a row's history; older ones go first.
HISTORY = 20
CANCELLED_ERROR = {"code": "cancelled", "message": "cancelled on request", "retryable": False}
EXPIRED_ERROR = {"code": "expired", "message": "the deadline passed before the task could be drawn", "retryable": False}


def released() -> dict[Any, Any]:
    """The columns of a claim that is given up, but for the token."""
    return {tasks.c.claimed_by: None, tasks.c.lease_until: None, tasks.c.started_at: None}


_C: Final = tasks.c
_MINE: Final = (_C.state == State.RUNNING, _C.claim_token.in_(bindparam("with_tokens", expanding=True)))

_GLIMPSE: Final = select(
    *(_C.id, _C.state, _C.lease_until, _C.not_before, _C.cancel_requested, _C.attempts, _C.deadline_at),
    now_ms().label("now"),
).where(_C.id.in_(IDS))
_RENEW: Final = update_tasks(IDS).where(*_MINE).values({_C.lease_until: LEASE})
_KEPT: Final = select(_C.id, _C.claim_token).where(_C.id.in_(IDS), *_MINE)


class Claims:
    """What a worker does to tasks; every call takes many and costs a fixed number of statements."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self,
        ids: Collection[str],
        worker_id: str,
        lease_s: float,
        *,
        token: str | None = None,
        known: TaskRow | None = None,
    ) -> list[TaskRow]:
        """Claim those of ``ids`` that are queued and due, or running with a lease that ran out; sorted by id.

        Counts one attempt. A task past its deadline is not claimed: :meth:`expire` ends it. ``known`` is the row of a
        lone task as its message tells it: where it was never changed since, it is claimed without being read, and
        answered as ``known`` (so ``request``, the callback and the place of the message are those of ``known``).
        """
        if not ids:
            return []
        terms = {"with_worker": worker_id, "with_lease": int(lease_s * 1000)}
        terms, tried = {**terms, "with_token": token or secrets.token_hex(12)}, False

        def work(connection: Connection) -> list[TaskRow]:
            nonlocal tried
            again, tried = tried, True  # the first try may have claimed before its connection was lost
            if known is not None and not again and (row := claim_as_submitted(connection, known, terms)) is not None:
                return [row]
            return claim_any(connection, list(ids), terms, again=again)

        return await self._database.write_singly(work)

    async def glimpse(self, ids: Collection[str]) -> dict[str, Held]:
        """Where tasks stand that this worker has not claimed; ids without a row are missing from the answer."""
        if not ids:
            return {}

        def held(row: Any) -> Held:
            return Held(
                State(row.state),
                0 if row.lease_until is None else row.lease_until - row.now,
                0 if row.not_before is None else row.not_before - row.now,
                bool(row.cancel_requested),
                row.attempts,
                None if row.deadline_at is None else row.deadline_at - row.now,
            )

        return await self._database.read(
            lambda connection: {row.id: held(row) for row in connection.execute(_GLIMPSE, {"with_ids": sorted(ids)})}
        )

    async def renew(self, tokens: Mapping[str, str], lease_s: float) -> set[str]:
        """Extend the leases of claims (task id → token); the ids that are lost, claimed by another or ended.

        Succeeds after the lease ran out while nobody else claimed.
        """
        if not tokens:
            return set()
        mine = {"with_ids": sorted(tokens), "with_tokens": sorted(set(tokens.values()))}

        def work(connection: Connection) -> set[str]:
            if connection.execute(_RENEW, {**mine, "with_lease": int(lease_s * 1000)}).rowcount == len(tokens):
                return set()
            return set(tokens) - {
                row.id for row in connection.execute(_KEPT, mine) if tokens[row.id] == row.claim_token
            }

        return await self._database.write(work)

    async def beat(self, progress: Mapping[str, tuple[str, float]]) -> set[str]:
        """Write progress (task id → token and share done, 0..1); the ids among them that shall be cancelled."""
        if not progress:
            return set()
        c = tasks.c

        def work(connection: Connection) -> set[str]:
            for part in chunks(sorted(progress)):
                mine = (c.state == State.RUNNING, c.claim_token.in_(sorted({progress[task_id][0] for task_id in part})))
                shares = each(c.progress, {task_id: progress[task_id][1] for task_id in part})
                told = update_tasks(part).where(*mine).values({c.progress: shares, c.version: c.version + 1})
                connection.execute(told, execution_options=UNCACHED)
            asked = select(c.id).where(c.id.in_(sorted(progress)), c.cancel_requested == 1, c.state == State.RUNNING)
            return set(connection.scalars(asked))

        return await self._database.write(work)

    async def hand_back(self, tokens: Mapping[str, str], *, count_attempt: bool = False) -> set[str]:
        """Give up claims (task id → token): queued again and the attempt taken back; the ids that were still ours.

        The task is not produced again: its message is not acked and comes to another worker. One that shall be
        cancelled ends as cancelled.
        """
        c = tasks.c

        def work(connection: Connection) -> set[str]:
            rows, now = lock_rows(connection, tokens)
            ours = {i: row for i, row in rows.items() if row.state is State.RUNNING and row.claim_token == tokens[i]}
            back = {task_id for task_id, row in ours.items() if not row.cancel_requested}
            end_rows(
                connection, (row for i, row in ours.items() if i not in back), State.CANCELLED, now, CANCELLED_ERROR
            )
            if back:
                values = {c.state: State.QUEUED.value, c.claim_token: None, c.progress: 0.0, c.version: c.version + 1}
                if not count_attempt:
                    values[c.attempts] = c.attempts - 1
                statement = update_tasks(back).where(c.state == State.RUNNING).values({**values, **released()})
                connection.execute(statement)
            return set(ours)

        return await self._database.write(work) if tokens else set()

    async def finish(self, ends: Sequence[End]) -> dict[str, State | None]:
        """End claimed tasks in one transaction: state, pictures, event and callback rows.

        Returns per task the state it got by this claim (:attr:`State.CANCELLED` where a cancellation came first,
        whatever the worker says; then no pictures are kept), or ``None`` where the claim no longer holds. Saying
        the same end twice gives the same answer and writes nothing twice.
        """
        for end in ends:
            if end.state not in ENDED or not may(State.RUNNING, end.state):
                raise ValueError(f"{end.task_id}: a claimed task cannot end as {end.state}")

        def work(connection: Connection) -> dict[str, State | None]:
            rows, now = lock_facts(connection, {end.task_id for end in ends})
            result: dict[str, State | None] = {}
            endings: list[Ending] = []
            for end in ends:
                row = rows.get(end.task_id)
                if result.get(end.task_id) is not None:
                    continue
                if row is None or row.claim_token != end.token or row.state in PENDING:
                    result[end.task_id] = None
                elif row.state in ENDED:
                    result[end.task_id] = State(row.state)
                else:
                    ending = _decided(end, row)
                    endings.append(ending)
                    result[end.task_id] = ending.state
            write_endings(connection, endings, now)
            return result

        return await self._database.write(work) if ends else {}

    async def retry(
        self,
        task_id: str,
        token: str,
        delay_s: float,
        error: Mapping[str, Any],
        *,
        instead: tuple[GenerationParams, float] | None = None,
    ) -> bool:
        """Queue a claimed task again, to be produced ``delay_s`` seconds from now; the failure joins its history.

        ``instead`` are other parameters and their cost, for a fallback model: attempts then count from zero.
        Returns whether the claim still held; the caller acks the old message either way. A task that shall be
        cancelled ends as cancelled instead.
        """
        c = tasks.c

        def work(connection: Connection) -> bool:
            rows, now = lock_rows(connection, [task_id])
            row = rows.get(task_id)
            if row is None or row.state is not State.RUNNING or row.claim_token != token:
                return False
            if row.cancel_requested:
                end_rows(connection, [row], State.CANCELLED, now, CANCELLED_ERROR)
                return True
            failed = {"attempt": row.attempts, "worker_id": row.claimed_by, "at": now, **error}
            due = now + int(delay_s * 1000)
            values: dict[Any, Any] = {
                c.state: State.QUEUED.value,
                c.claim_token: None,
                c.progress: 0.0,
                c.history: dump([*row.history, failed][-HISTORY:]),
                c.not_before: due,
                c.produce_at: due,
                c.version: c.version + 1,
                **released(),
            }
            if instead is not None:
                params, values[c.cost] = instead
                values |= {c.params: params.model_dump_json(exclude_none=True), c.attempts: 0}
                values |= {c.model: params.model, c.family: params.family}
            return (
                connection.execute(update_tasks([task_id]).where(c.state == State.RUNNING).values(values)).rowcount == 1
            )

        return await self._database.write(work)

    async def expire(self, ids: Collection[str]) -> set[str]:
        """End those of ``ids`` that are past their deadline and that nobody draws; the ids that ended by this call."""

        def work(connection: Connection) -> set[str]:
            rows, now = lock_rows(connection, ids)
            late = [
                row
                for row in rows.values()
                if row.deadline_at is not None and row.deadline_at <= now and idle(row, now)
            ]
            asked = [row for row in late if row.cancel_requested]
            end_rows(connection, asked, State.CANCELLED, now, CANCELLED_ERROR)
            end_rows(connection, (row for row in late if not row.cancel_requested), State.EXPIRED, now, EXPIRED_ERROR)
            return {row.id for row in late}

        return await self._database.write(work) if ids else set()


def idle(row: TaskRow, now: int) -> bool:
    """Whether nobody holds the task: queued or waiting for weights, or its lease ran out."""
    return row.state in PENDING or (row.state is State.RUNNING and (row.lease_until or 0) < now)


def _decided(end: End, row: Any) -> Ending:
    """A worker's end after the row's word: a cancellation that came first wins."""
    if row.cancel_requested and end.state is not State.CANCELLED:
        event = end.event.model_copy(update={"event": State.CANCELLED.value, "images": 0, "error": "cancelled"})
        return Ending(
            end.task_id, row.version, State.CANCELLED, event, row.callback_url,
            error=CANCELLED_ERROR, timings=end.timings, token=end.token,
        )  # fmt: skip
    return Ending(
        end.task_id, row.version, end.state, end.event, row.callback_url,
        images=end.images, error=end.error, timings=end.timings, token=end.token,
    )  # fmt: skip
