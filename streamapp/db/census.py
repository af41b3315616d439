"""How many tasks wait: exact while that is cheap, an estimate beyond, never a cost that grows with the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from sqlalchemy import Connection, func, literal_column, select

from streamapp.db.database import Database
from streamapp.db.rows import TaskRow
from streamapp.db.schema import tasks
from streamapp.db.states import PENDING, State

T = TypeVar("T")

#: Queue positions up to here are exact.
EXACT = 10_000
#: A count is taken again after this many times its own duration, so counting takes at most 5 % of the time…
SHARE = 20.0
#: … and never more often than this (seconds).
FRESH = 0.5


class Sampled(Generic[T]):
    """A figure that is expensive to take: the last one is given at once, a stale one is renewed in the background."""

    def __init__(self, database: Database, take: Callable[[], Awaitable[T]]) -> None:
        self._database = database
        self._take = take
        self._value: T | None = None
        self._due = 0.0
        self._running: asyncio.Task[T] | None = None

    async def value(self) -> T:
        """The last figure; waits only for the very first one."""
        if time.monotonic() >= self._due and (self._running is None or self._running.done()):
            self._running = self._database.background(self._renew(), "census")
            self._running.add_done_callback(_look)
        if self._value is None and self._running is not None:
            return await asyncio.shield(self._running)
        return cast("T", self._value)

    async def fresh(self) -> T:
        """The last figure, or the new one where a renewal is due or under way: for what must not rest on an old one."""
        value = await self.value()
        return value if self._running is None or self._running.done() else await asyncio.shield(self._running)

    async def _renew(self) -> T:
        started = time.monotonic()
        # A failure says nothing about what counting costs: a database that is back is asked again at once.
        pause = FRESH
        try:
            self._value = await self._take()
            pause = max(FRESH, SHARE * (time.monotonic() - started))
        finally:
            self._due = time.monotonic() + pause
        return self._value


def _look(task: asyncio.Task[T]) -> None:
    """A renewal that failed leaves the old figure; the next one tries again."""
    if not task.cancelled():
        task.exception()


@dataclass(frozen=True, slots=True)
class Lane:
    """The queued tasks of one family and priority: how many (at most :data:`EXACT`), since when, and until when."""

    count: int
    first_at: int
    last_at: int

    def ahead_of(self, submitted_at: int) -> float:
        """How many were submitted before, assuming that they went on coming at the same pace."""
        if self.count < EXACT or submitted_at <= self.first_at:
            return float(self.count)
        return self.count * max(1.0, (submitted_at - self.first_at) / max(1, self.last_at - self.first_at))


class Census:
    """Counts of tasks, for positions, back-pressure and the status page."""

    def __init__(self, database: Database, created: Callable[[], int]) -> None:
        self._database = database
        self._created = created
        self._counts = Sampled(database, lambda: database.read(_counts))
        self._lanes: dict[str, Sampled[dict[int, Lane]]] = {}
        self._queued: dict[int, Sampled[tuple[int, int]]] = {}

    async def counts(self) -> dict[tuple[str, str, str], int]:
        """Tasks by state, family and model."""
        return dict(await self._counts.value())

    async def queued(self, limit: int) -> int:
        """Tasks queued, at most ``limit``: a recent count plus what this process added since."""
        sampled = self._queued.setdefault(limit, Sampled(self._database, lambda: self._count_queued(limit)))
        count, created = await sampled.value()
        if count + self._created() - created >= limit:
            # Nobody is turned away for what waited an hour ago.
            count, created = await sampled.fresh()
        return min(limit, count + self._created() - created)

    async def _count_queued(self, limit: int) -> tuple[int, int]:
        created = self._created()
        some = select(literal_column("1")).where(tasks.c.state.in_(sorted(PENDING))).limit(limit).subquery()
        return await self._database.read(
            lambda connection: connection.scalar(select(func.count()).select_from(some)) or 0
        ), created

    async def position(self, row: TaskRow) -> int:
        """How many queued tasks of the family go before ``row``: higher priorities, then the older ones."""
        lanes = await self._lanes.setdefault(
            row.family, Sampled(self._database, lambda: self._take_lanes(row.family))
        ).value()
        own = lanes.get(row.priority)
        before = [lane for priority, lane in lanes.items() if priority < row.priority]
        crowded = any(lane.count >= EXACT for lane in before) or (
            own is not None and own.count >= EXACT and row.submitted_at > own.last_at
        )
        if not crowded:
            return await self._database.read(lambda connection: _exact(connection, row))
        return round(sum(lane.ahead_of(row.submitted_at) for lane in (*before, *([own] if own else []))))

    async def _take_lanes(self, family: str) -> dict[int, Lane]:
        return await self._database.read(lambda connection: _lanes(connection, family))


def _counts(connection: Connection) -> dict[tuple[str, str, str], int]:
    c = tasks.c
    columns = (c.state, c.family, c.model)
    grouped = connection.execute(select(*columns, func.count().label("n")).group_by(*columns))
    return {(row.state, row.family, row.model): row.n for row in grouped}


def _lanes(connection: Connection, family: str) -> dict[int, Lane]:
    """The head of each priority's queue; at most :data:`EXACT` index entries are read for each."""
    c, lanes = tasks.c, {}
    for priority in range(4):
        lane = (c.state == State.QUEUED, c.family == family, c.priority == priority)
        head = select(c.submitted_at).where(*lane).order_by(c.submitted_at).limit(EXACT).subquery()
        figures = select(func.count(), func.min(head.c.submitted_at), func.max(head.c.submitted_at))
        count, first, last = connection.execute(figures).one()
        if count:
            lanes[priority] = Lane(count, first, last)
    return lanes


def _exact(connection: Connection, row: TaskRow) -> int:
    """Count from the index, at most :data:`EXACT` entries of each kind."""
    c = tasks.c
    queued = (c.state == State.QUEUED, c.family == row.family)
    earlier = (c.priority == row.priority, c.submitted_at < row.submitted_at)
    total = 0
    for where in ((*queued, c.priority < row.priority), (*queued, *earlier)):
        some = select(literal_column("1")).select_from(tasks).where(*where).limit(EXACT).subquery()
        total += connection.scalar(select(func.count()).select_from(some)) or 0
    return total
