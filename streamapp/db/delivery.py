"""The outbox's side: what has to reach the broker, and where it went."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, union_all, update
from sqlalchemy.exc import IntegrityError

from streamapp.db.claiming import orphaned
from streamapp.db.claims import CANCELLED_ERROR, Claims, idle, released
from streamapp.db.database import Database
from streamapp.db.endings import UNCACHED, along, chunks, each, end_rows, lock_rows, update_tasks
from streamapp.db.rows import Callback, CallbackState, DueTask, Event, Lost, Produced, task_row
from streamapp.db.schema import callbacks, leases, now_ms, outbox, tasks
from streamapp.db.states import LIVE, PENDING, State

PRIORITIES = range(4)


class Delivery:
    """Messages, events and callbacks between the rows and the world; every call is bounded by its ``limit``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claims = Claims(database)

    async def due(self, limit: int) -> list[DueTask]:
        """Queued tasks to produce now, by priority, then age (for a retry: since when it is due)."""
        c = tasks.c

        def work(connection: Connection) -> list[DueTask]:
            found: list[DueTask] = []
            # A query per priority walks the index in order and stops at the limit, whatever waits behind.
            for priority in PRIORITIES:
                lane = (c.priority == priority, c.produce_at <= now_ms(), c.state == State.QUEUED)
                oldest = (
                    along(select(tasks), "priority_produce_at")
                    .where(*lane)
                    .order_by(c.produce_at)
                    .limit(limit - len(found))
                )
                found += [task_row(row) for row in connection.execute(oldest)]
                if len(found) >= limit:
                    break
            return sorted(found, key=lambda row: (row.priority, row.submitted_at, row.id))

        return await self._database.read(work)

    async def mark_produced(self, produced: Sequence[Produced]) -> None:
        """Note where messages went. A task that waits for a retry by now keeps its date: that message is old.

        Noted a second time it stays as it is, so a transaction would only hold the rows for longer.
        """
        last = {item.task_id: item for item in produced}
        c = tasks.c
        pending = (
            c.produce_at.is_not(None),
            c.state.in_(sorted(LIVE)),
            or_(c.not_before.is_(None), c.not_before <= now_ms()),
        )

        def work(connection: Connection) -> None:
            for part in chunks(sorted(last)):
                places = [last[task_id] for task_id in part]
                values = {
                    c.topic: each(c.topic, {place.task_id: place.topic for place in places}),
                    c.partition: each(c.partition, {place.task_id: place.partition for place in places}),
                    c.offset: each(c.offset, {place.task_id: place.offset for place in places}),
                    c.produce_at: None,
                }
                connection.execute(update_tasks(part).where(*pending).values(values), execution_options=UNCACHED)

        if last:
            await self._database.write_singly(work)

    async def events(self, limit: int) -> list[Event]:
        """Events not sent yet, oldest first."""
        oldest = select(outbox.c.seq, outbox.c.body, outbox.c.key).order_by(outbox.c.seq).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(oldest).all())
        return [Event(seq, body.encode(), key) for seq, body, key in rows]

    async def mark_events_sent(self, seqs: Collection[int]) -> None:
        """Forget events that are on their topic."""
        gone = delete(outbox).where(outbox.c.seq.in_(sorted(seqs)))
        if seqs:
            await self._database.write(lambda connection: connection.execute(gone).rowcount)

    async def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take or renew the right to do the job ``name`` alone; whether ``holder`` has it now."""
        c, until = leases.c, now_ms() + int(seconds * 1000)
        taken = (
            update(leases)
            .where(c.name == name, or_(c.holder == holder, c.until < now_ms()))
            .values({c.holder: holder, c.until: until})
        )

        def work(connection: Connection) -> bool:
            if connection.execute(taken).rowcount:
                return True
            if connection.scalar(select(c.name).where(c.name == name)) is not None:
                return False
            connection.execute(insert(leases).values({c.name: name, c.holder: holder, c.until: until}))
            return True

        try:
            return await self._database.write(work)
        except IntegrityError:  # somebody else was first to insert the row
            return False

    async def release(self, name: str, holder: str) -> None:
        """Give the job up, so that another process has it at once."""
        gone = delete(leases).where(leases.c.name == name, leases.c.holder == holder)
        await self._database.write(lambda connection: connection.execute(gone).rowcount)

    async def lost_candidates(self, after_id: str, limit: int, older_than_s: float) -> list[Lost]:
        """Live tasks, by id, that were produced and that nobody holds: is their message still to come, or lost."""
        c = tasks.c
        columns = (c.id, c.topic, c.partition, c.offset)
        old = (c.id > after_id, c.submitted_at < now_ms() - int(older_than_s * 1000))
        waiting = along(select(*columns), "state_id").where(*old, c.state == State.QUEUED, c.produce_at.is_(None))
        abandoned = along(select(*columns), "state_id").where(*old, orphaned())
        # Two walks along (state, id), each stopping at the limit.
        parts = [select(part.order_by(c.id).limit(limit).subquery()) for part in (waiting, abandoned)]
        both = union_all(*parts).subquery()
        merged = select(both).order_by(both.c.id).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(merged).all())
        return [Lost(*row) for row in rows]

    async def requeue(self, ids: Collection[str]) -> int:
        """Produce lost tasks again, at their old place in the order; how many were still lost.

        A lease that ran out ends here: the task is queued again, and its attempt counts. One that shall be cancelled
        ends as cancelled.
        """
        c = tasks.c

        def work(connection: Connection) -> int:
            rows, now = lock_rows(connection, ids)
            lost = [
                row
                for row in rows.values()
                if idle(row, now)
                and row.state is not State.FETCHING
                and not (row.state is State.QUEUED and row.produce_at)
            ]
            end_rows(connection, (row for row in lost if row.cancel_requested), State.CANCELLED, now, CANCELLED_ERROR)
            again = {row.id for row in lost if not row.cancel_requested}
            if again:
                values = {
                    c.state: State.QUEUED.value,
                    c.claim_token: None,
                    c.progress: 0.0,
                    # Due at once, and before everything younger.
                    c.produce_at: c.submitted_at,
                    c.version: c.version + 1,
                    **released(),
                }
                connection.execute(update_tasks(again).where(c.state.in_(sorted(LIVE))).values(values))
            return len(again)

        return await self._database.write(work) if ids else 0

    async def expire_overdue(self, limit: int) -> set[str]:
        """End tasks past their deadline that nobody draws, wherever their messages are; the ids that ended."""
        c = tasks.c
        late = along(select(c.id), "state_deadline_at").where(c.deadline_at <= now_ms())
        lanes = (*(late.where(c.state == state) for state in sorted(PENDING)), late.where(orphaned()))
        parts = [select(part.order_by(c.deadline_at).limit(limit).subquery()) for part in lanes]
        ids = await self._database.read(lambda connection: list(connection.scalars(union_all(*parts))))
        return await self._claims.expire(ids[:limit])

    async def next_callback_in(self) -> float | None:
        """Seconds until a webhook is due (0 or less: now), ``None`` when none waits. Only reads."""
        c = callbacks.c
        first = select(c.next_at - now_ms()).where(c.next_at.is_not(None)).order_by(c.next_at).limit(1)
        left = await self._database.read(lambda connection: connection.scalar(first))
        return None if left is None else left / 1000

    async def due_callbacks(
        self, limit: int, hold_s: float, *, per_host: int | None = None, sending: Mapping[str, int] | None = None
    ) -> list[Callback]:
        """Claim webhooks to deliver now, oldest first: an attempt belongs to one process.

        They are not due again for ``hold_s`` seconds, in case this process dies. With ``per_host``, hosts of which
        ``sending`` (by :func:`host_of`) says that so many are on their way get no more: one that is slow does not
        stand before the others.
        """
        c, taken = callbacks.c, Counter(sending or {})
        full = [host for host, count in taken.items() if per_host is not None and count >= per_host]
        columns = (c.event_id, c.task_id, c.url, c.body, c.attempts, c.created_at)
        oldest = select(*columns).where(c.next_at <= now_ms(), *(_elsewhere(host) for host in full))
        oldest = oldest.order_by(c.next_at).limit(limit if per_host is None else limit * 4)

        def work(connection: Connection) -> list[Callback]:
            hosts, chosen = taken.copy(), list[Callback]()
            for row in connection.execute(oldest.with_for_update(skip_locked=True)):
                host = host_of(row[2])
                if len(chosen) < limit and (per_host is None or hosts[host] < per_host):
                    hosts[host] += 1
                    chosen.append(Callback(row[0], row[1], row[2], row[3].encode(), row[4] + 1, row[5]))
            if chosen:
                held = {c.next_at: now_ms() + int(hold_s * 1000), c.attempts: c.attempts + 1}
                ids = sorted(call.event_id for call in chosen)
                connection.execute(update(callbacks).where(c.event_id.in_(ids)).values(held))
            return chosen

        return await self._database.write(work)

    async def end_callback(self, event_id: str, error: str | None = None, *, attempt: int | None = None) -> bool:
        """A webhook is delivered, or given up with an ``error``; whether ``attempt`` was still the newest one."""
        ended = {callbacks.c.next_at: None, callbacks.c.ended_at: now_ms(), callbacks.c.error: error}
        return await self._set_callback(event_id, attempt, ended)

    async def delay_callback(
        self, event_id: str, delay_s: float, error: str, *, attempt: int | None = None, count: bool = True
    ) -> bool:
        """A webhook failed: try again ``delay_s`` seconds from now; whether ``attempt`` was still the newest one.

        With ``count=False`` nothing was sent, and the attempt is taken back.
        """
        c = callbacks.c
        later: dict[Any, Any] = {c.next_at: now_ms() + int(delay_s * 1000), c.error: error}
        if not count:
            later[c.attempts] = c.attempts - 1
        return await self._set_callback(event_id, attempt, later)

    async def _set_callback(self, event_id: str, attempt: int | None, values: Mapping[Any, Any]) -> bool:
        """Fenced by the number of the attempt: who comes back after his hold ran out changes nothing."""
        statement = update(callbacks).where(callbacks.c.event_id == event_id).values(dict(values))
        if attempt is not None:
            statement = statement.where(callbacks.c.attempts == attempt, callbacks.c.ended_at.is_(None))
        return await self._database.write(lambda connection: connection.execute(statement).rowcount == 1)

    async def callback_state(self, task_id: str, ended_at: int) -> CallbackState | None:
        """How far the webhook is that tells of this end of a task (one that was replayed ends again)."""
        c = callbacks.c
        columns = (c.attempts, c.next_at, c.ended_at, c.error)
        # Written in one transaction with the end, with its time.
        statement = select(*columns).where(c.task_id == task_id, c.created_at == ended_at)
        row = await self._database.read(lambda connection: connection.execute(statement).first())
        return None if row is None else CallbackState(*row)


def host_of(url: str) -> str:
    """Scheme, host and port of a URL as they are spelled, in lower case."""
    return re.split(r"(?<=[^:/])[/?#]", url, maxsplit=1)[0].lower()


def _elsewhere(host: str) -> ColumnElement[bool]:
    """Whether a webhook goes to another host than this one, of :func:`host_of`."""
    start = func.lower(func.substr(callbacks.c.url, 1, len(host) + 1))
    return start.not_in([host, *(host + mark for mark in "/?#")])
