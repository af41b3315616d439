"""What the database holds and the broker shall have: new tasks, due retries, task events.

Two ways lead there. The hot path: the process that inserted a row produces it at once, in the background. The
sweeper: one process, chosen by a row in ``leases``, produces twice a second whatever is due, so a crash between
insert and produce, or a broker that is away, delays a task and never loses it. A message that goes out twice is
harmless.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from streamapp import read_models, topics
from streamapp.db import Delivery, Event, Produced, TaskRow
from streamapp.errors import Unavailable
from streamapp.reconciler import Reconciler
from streamapp.records import TaskMessage, WorkerStatus
from streamapp.scheduling.router import Router
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

if TYPE_CHECKING:
    from streamapp.app import StreamApp
    from streamapp.broker.admin import Admin
    from streamapp.db import Tasks

log = get_logger(__name__)

#: Records ``(topic, partition, key, value)`` to where the broker put each, or why it did not take it.
Send = Callable[[Sequence[tuple[str, int | None, bytes, bytes]]], Awaitable[Sequence[tuple[int, int] | Unavailable]]]

#: Rows handed over and not sent yet; more are left to the sweeper.
HOT_ROWS = 20_000
#: Records sent together, and marked in one statement.
BATCH = 500
SWEEP = 0.5
#: A sweeper that died is replaced after this many seconds.
LEASE = 10.0
#: While older rows wait, new ones are left to the sweeper for so long, so that the older ones go first.
PAUSE = 2.0
#: Seconds for which marks gather: at once they would hold the row's lock just when its message has it claimed.
GATHER = 0.05
MAX_DELAY = 5.0


def message_of(row: TaskRow) -> TaskMessage:
    """The message that says a task is there to be drawn."""
    return TaskMessage(
        task_id=row.id,
        user_id=row.user_id,
        family=row.family,
        model=row.model,
        loras=row.params.loras,
        params=row.params,
        priority=row.priority,
        cost=row.cost,
        submitted_at=row.submitted_at,
        deadline_at=row.deadline_at,
        trace=row.trace,
    )


class Outbox:
    """Produces what the rows say, from this process.

    ``statuses`` are the live workers, for the choice of the partition; ``reconcile`` looks once for lost messages.
    """

    def __init__(
        self,
        settings: Settings,
        delivery: Delivery,
        send: Send,
        *,
        statuses: Callable[[], Sequence[WorkerStatus]] = list,
        reconcile: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        self._settings = settings
        self._delivery = delivery
        self._send = send
        self._statuses = statuses
        self._reconcile = reconcile
        self._router = Router(settings.task_partitions)
        self._holder = f"{settings.worker_id}-{secrets.token_hex(3)}"
        self._hot: list[tuple[int, int, str, TaskRow]] = []
        self._marks: deque[Produced] = deque(maxlen=HOT_ROWS)
        self._wake_hot = asyncio.Event()
        self._wake_marks = asyncio.Event()
        self._paused_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start producing; neither broker nor database needs to be there yet."""
        if self._tasks:
            return
        loops: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]] = [
            ("hot", self._pump),
            ("marks", self._mark),
            ("sweeper", self._sweep_for_ever),
        ]
        if self._reconcile is not None:
            loops.append(("reconciler", self._reconcile_for_ever))
        self._tasks = [asyncio.create_task(_restart(name, work), name=f"outbox-{name}") for name, work in loops]

    def offer(self, row: TaskRow) -> None:
        """Produce a new row at once. May leave it to the sweeper: its ``produce_at`` is two seconds ahead."""
        if len(self._hot) < HOT_ROWS:
            heapq.heappush(self._hot, (row.priority, row.submitted_at, row.id, row))
            self._wake_hot.set()

    async def close(self) -> None:
        """Stop; what is not sent stays in the database for others, or for the next start."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not tasks:
            return
        with suppress(Unavailable):
            await self._write_marks()
        for name in ("outbox", "reconciler"):
            with suppress(Unavailable):
                await self._delivery.release(name, self._holder)

    async def _pump(self) -> None:
        """The hot path."""
        while True:
            await self._wake_hot.wait()
            self._wake_hot.clear()
            while self._hot:
                rows = [heapq.heappop(self._hot)[-1] for _ in range(min(BATCH, len(self._hot)))]
                if time.monotonic() < self._paused_until:
                    continue
                produced = await self._produce(rows)
                self._marks.extend(produced)
                self._wake_marks.set()

    async def _mark(self) -> None:
        """Writes down in bulk where messages went, beside the sending."""
        while True:
            await self._wake_marks.wait()
            self._wake_marks.clear()
            await asyncio.sleep(GATHER)
            try:
                await self._write_marks()
            except Unavailable:
                # The sweeper sends them again once the database is back.
                await asyncio.sleep(SWEEP)

    async def _write_marks(self) -> None:
        while self._marks:
            some = [self._marks.popleft() for _ in range(min(BATCH, len(self._marks)))]
            await self._delivery.mark_produced(some)

    async def _sweep_for_ever(self) -> None:
        delay = SWEEP
        while True:
            try:
                if await self._delivery.lease("outbox", self._holder, LEASE):
                    await self.sweep()
                delay = SWEEP
            except Unavailable as error:
                if delay == SWEEP:
                    log.warning("due tasks wait", action="outbox_waits", reason=error.message)
                delay = min(delay * 2, MAX_DELAY)
                # What is submitted until then lines up behind what waits, also when the broker is back before.
                self._paused_until = time.monotonic() + delay + SWEEP
            await asyncio.sleep(delay)

    async def sweep(self) -> None:
        """Produce everything due: rows by priority and age, then events; end tasks whose deadline is over.

        Raises:
            Unavailable: database or broker do not answer; everything not marked is still due.
        """
        while await self._delivery.expire_overdue(BATCH):
            await self._keep_lease()
        while True:
            rows = await self._delivery.due(BATCH)
            produced = await self._produce(rows)
            await self._delivery.mark_produced(produced)
            if len(rows) == BATCH:
                self._pause()
            if rows and not produced:
                raise Unavailable("the broker takes no tasks")
            events = await self._delivery.events(BATCH)
            sent = await self._send_events(events)
            await self._delivery.mark_events_sent(sent)
            if events and not sent:
                raise Unavailable("the broker takes no events")
            if len(rows) < BATCH and len(events) < BATCH:
                return
            await self._keep_lease()

    async def _keep_lease(self) -> None:
        if not await self._delivery.lease("outbox", self._holder, LEASE):
            raise Unavailable("another process sweeps by now")

    async def _produce(self, rows: Sequence[TaskRow]) -> list[Produced]:
        """Send rows in their order; those that the broker took."""
        if not rows:
            return []
        statuses = self._statuses()
        records = []
        for row in rows:
            message = message_of(row)
            topic = topics.topic_for(row.family, row.priority)
            partition = self._router.partition(topic, message, statuses)
            records.append((topic, partition, row.id.encode(), message.encode()))
        answers = await self._send_all(records)
        return [
            Produced(row.id, record[0], *answer)
            for row, record, answer in zip(rows, records, answers, strict=True)
            if not isinstance(answer, Unavailable)
        ]

    async def _send_events(self, events: Sequence[Event]) -> list[int]:
        answers = await self._send_all([(topics.TASK_EVENTS, None, event.key.encode(), event.body) for event in events])
        return [event.seq for event, answer in zip(events, answers, strict=True) if not isinstance(answer, Unavailable)]

    async def _send_all(
        self, records: Sequence[tuple[str, int | None, bytes, bytes]]
    ) -> Sequence[tuple[int, int] | Unavailable]:
        """Send all; what the broker does not take makes new tasks line up behind the older ones."""
        if not records:
            return []
        answers = await self._send(records)
        if any(isinstance(answer, Unavailable) for answer in answers):
            self._pause()
        return answers

    def _pause(self) -> None:
        """Older tasks are waiting for the sweeper: new ones line up behind them."""
        self._paused_until = time.monotonic() + PAUSE

    async def _reconcile_for_ever(self) -> None:
        interval = self._settings.reconcile_interval
        while True:
            await asyncio.sleep(interval)
            if self._reconcile is None:
                return
            with suppress(Unavailable):
                if await self._delivery.lease("reconciler", self._holder, interval * 2):
                    await self._reconcile()


async def _restart(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a loop for ever: a defect in one turn is logged, and the next turn comes."""
    while True:
        try:
            await work()
        except Exception:  # supervised: deliveries must not end for as long as the process lives
            log.exception("a part of the outbox failed and starts again", action="outbox_failed", part=name)
            await asyncio.sleep(1.0)


def open_outbox(app: StreamApp, *, tasks: Tasks, delivery: Delivery, admin: Admin) -> Outbox:
    """The outbox of a process, not started yet."""
    del tasks  # what is due comes through the delivery

    def statuses() -> list[WorkerStatus]:
        return read_models.statuses(app) if app.tables_ready else []

    settings = app.settings
    reconciler = Reconciler(settings, delivery, admin)
    return Outbox(settings, delivery, app.produce_all, statuses=statuses, reconcile=reconciler.run)
