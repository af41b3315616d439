"""The worker: takes deliveries into the Backlog, and on each wake-up lets what should join next join the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any

from streamapp.broker.record import TP
from streamapp.db import ENDED, Held, State, TaskRow
from streamapp.errors import Unavailable
from streamapp.records import TaskMessage
from streamapp.retry import CRASHED
from streamapp.settings import Settings
from streamapp.telemetry import get_logger
from streamapp.worker.backlog import Backlog, Job, Phase, Receipt
from streamapp.worker.claimed import failed_last_by
from streamapp.worker.claiming import Claimer
from streamapp.worker.drain import drain
from streamapp.worker.finisher import Finisher
from streamapp.worker.leases import Leases
from streamapp.worker.lives import Lives
from streamapp.worker.parts import Parts

log = get_logger(__name__)
#: Jobs looked up in the database, and claimed, by one statement.
LOOK, CLAIM = 500, 64
#: How long a drain waits for a claim under way, in seconds.
SETTLE = 5.0
#: Images drawn and not stored yet, above which nothing joins: the storage must keep up.
FINISHING = 128
#: How long a job is left alone whose lease somebody else holds, in seconds: it may be handed back at any moment.
LEAST_HOLD, LONGEST_HOLD = 0.5, 1.0


class Worker:
    """One GPU's worth of jobs. ``wake`` may be called from anywhere on the loop; ``window`` by one task only."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.settings = settings
        self.claims = parts.claims
        self.drawing = parts.drawing
        self.spool = parts.spool
        self.clock = parts.clock
        self.backlog = Backlog(settings.lookahead, parts.release)
        self._ahead = parts.ahead
        self.draining = False
        self.crowded = False  # the last turn ended because the engine was full
        self.owned: frozenset[TP] = frozenset()
        self.woken = asyncio.Event()
        self._changed: Callable[[], None] = lambda: None
        self._finisher = Finisher(parts.claims)
        self.lives = Lives(settings.worker_id, parts, self.backlog, self._finisher, self.wake)
        self._leases = Leases(parts.claims, self.lives.running, settings.lease, settings.lease_renewal)
        self._claimer = Claimer(parts.claims, settings, parts.clock)
        self._window_lock = asyncio.Lock()

    async def start(self) -> None:
        """Start heartbeat, result writer and engine."""
        self._finisher.start()
        self._leases.start()
        await self.drawing.start()

    def loaded(self, model: str, seconds: float) -> None:
        """A checkpoint was made ready before anybody asked for it."""
        self.lives.rates.loaded(model, seconds)
        self.wake()

    async def close(self) -> None:
        """Stop everything; call :meth:`drain` before, else running jobs wait for their leases to run out."""
        self.draining = True
        for claimed in list(self.lives.running.values()):
            if claimed.task is not None:
                claimed.task.cancel()
        if self._ahead is not None:
            await self._ahead.close()
        await self._leases.close()
        await self._finisher.close()
        await self.drawing.close()

    def on_change(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` whenever the status may have changed."""
        self._changed = tell

    # What comes in.
    def receive(self, message: TaskMessage, receipt: Receipt, now: float) -> None:
        """A delivery from a task topic."""
        if self.backlog.add(message, receipt, now):
            self._claimer.note(message)
            self.wake()

    async def assigned(self, owned: AbstractSet[TP]) -> None:
        """A rebalance ended: unstarted jobs of partitions that went elsewhere leave; what runs, runs on."""
        self.owned = frozenset(owned)
        dropped = self.backlog.drop_partitions(owned)
        held = len(self.backlog)
        log.info("partitions assigned", action="assigned", partitions=len(owned), dropped=dropped, held=held)
        self.wake()

    def wake(self) -> None:
        """There may be something to do."""
        self.woken.set()
        self._changed()

    # What goes on.
    async def window(self) -> None:
        """One turn: end what is too late, let join what should, look up what came; quiet while the database is away."""
        async with self._window_lock:
            await self.clock.sync()
            await self._expire()
            due = self.backlog.due(time.monotonic())
            for job in due:
                self.backlog.wait(job)
            await self._look(due)
            await self._join()
            await self._look(self.backlog.fresh(LOOK))
            self._look_ahead()

    async def _expire(self) -> None:
        late = self.backlog.overdue(self.clock.now())
        for start in range(0, len(late), LOOK):
            part = late[start : start + LOOK]
            try:
                ended = await self.claims.expire([job.task_id for job in part])
            except Unavailable:
                for job in part:
                    self.backlog.hold(job, time.monotonic() + LEAST_HOLD)
                raise
            for job in part:
                if job.task_id in ended:
                    self.backlog.done(job)
            await self._look([job for job in part if job.task_id not in ended], again=True)

    async def _look(self, jobs: list[Job], *, again: bool = False) -> None:
        """Ask the database about jobs: ended ones are acked and dropped, others' are held, the rest wait."""
        for start in range(0, len(jobs), LOOK):
            part = jobs[start : start + LOOK]
            try:
                seen = await self.claims.glimpse([job.task_id for job in part])
            except Unavailable:
                for job in part:
                    self.backlog.hold(job, time.monotonic() + LEAST_HOLD)
                raise
            late = [job for job in part if self._judge(job, seen.get(job.task_id), again=again)]
            ended = await self.claims.expire([job.task_id for job in late]) if late else set()
            for job in late:
                if job.task_id in ended:
                    self.backlog.done(job)

    def _judge(self, job: Job, held: Held | None, *, again: bool) -> bool:
        """What one look says about a job that this worker has not claimed; True: it is past its deadline, held."""
        if job.phase is Phase.RUNNING and job.task_id in self.lives.running:
            return False
        if held is None or held.state in ENDED:
            if held is None:
                log.warning("a message without a row was dropped", action="row_missing", task_id=job.task_id)
            self.backlog.done(job)
            return False
        lease = min(held.lease_ms / 1000, LONGEST_HOLD) if held.state is State.RUNNING else 0.0
        late = held.deadline_ms is not None and held.deadline_ms <= 0
        wait = max(lease, held.not_before_ms / 1000)
        if wait > 0 or late or again:
            # Also a job that was refused for no reason to be seen rests a moment: it must not spin.
            self.backlog.hold(job, time.monotonic() + max(wait, LEAST_HOLD))
        return late and lease <= 0

    # Who joins.
    async def _join(self) -> None:
        """Claim and start jobs while the engine has room for them."""
        while not self.draining:
            picked = self._pick()
            if not picked:
                return
            try:
                rows = await self._claimer.claim([job.task_id for job in picked])
            except BaseException:
                for job in picked:
                    self.backlog.wait(job)
                raise
            claimed = {row.id: row for row in rows}
            pairs = [(job, claimed[job.task_id]) for job in picked if job.task_id in claimed]
            await self._put_back([(job, row) for job, row in pairs if not self._start(job, row)])
            await self._look([job for job in picked if job.task_id not in claimed], again=True)

    def _pick(self) -> list[Job]:
        """The jobs that join now, in the policy's order, taken out of the waiting ones."""
        now = time.monotonic()
        self.crowded = False
        picked: list[Job] = []
        room: dict[tuple[Any, ...], int] = {}
        taken = self.lives.joining
        finishing = self.lives.images - taken - self.drawing.running
        if self.drawing.state != "ready" or self.spool.full or finishing > FINISHING:
            return picked
        if self.lives.suspects:
            return self._pick_suspect(now)
        if any(claimed.job.alone for claimed in self.lives.running.values()):
            return picked
        switch = self._switch()
        while len(picked) < CLAIM:
            ticket = self.backlog.waiting.next(now, switch)
            job = None if ticket is None else self.backlog.get(ticket.task_id)
            if job is None:
                break
            key = (job.model, job.width, job.height)
            left = room[key] if key in room else self.drawing.room(job.width, job.height) - taken
            if left <= 0:
                self.crowded = True
                break
            if job.alone and (picked or self.lives.running):
                break
            room[key] = left - job.n
            taken += job.n
            self.backlog.start(job, now)
            picked.append(job)
            if job.alone:
                break
        return picked

    def _switch(self) -> Callable[[str], float]:
        """Seconds that switching to a model takes now, from the tier in which it is."""
        tiers = dict(self.drawing.checkpoints)
        return lambda model: self.lives.rates.switch(model, tier=tiers.get(model, "disk"))

    def _look_ahead(self) -> None:
        """Have what will be needed next brought nearer while the engine draws."""
        if self._ahead is None or self.draining or not len(self.backlog.waiting):
            return
        now = time.monotonic()
        tickets = self.backlog.waiting.soon(now, self._switch())
        jobs = [job for job in (self.backlog.get(ticket.task_id) for ticket in tickets) if job is not None]
        self._ahead.want((job.model for job in jobs), (lora for job in jobs for lora in job.loras), now)

    def _pick_suspect(self, now: float) -> list[Job]:
        """After a crash of the engine: one suspect at a time, with nobody beside it."""
        if self.lives.running:
            return []
        for task_id in sorted(self.lives.suspects):
            job = self.backlog.get(task_id)
            if job is None:
                self.lives.suspects.discard(task_id)
            elif job.phase is Phase.WAITING:
                self.backlog.start(job, now)
                return [job]
        return []

    def _start(self, job: Job, row: TaskRow) -> bool:
        """Begin a claimed job, unless its history says that it must be alone and it is not, or it is not for here."""
        known = failed_last_by(CRASHED, row)
        if row.family not in self.settings.families or (known and not job.alone and self.lives.running):
            return False
        job.alone = job.alone or known
        self.lives.begin(job, row)
        return True

    async def _put_back(self, pairs: list[tuple[Job, TaskRow]]) -> None:
        """Give up claims of jobs that did not begin, however long the database is away meanwhile."""
        tokens = {row.id: row.claim_token or "" for _, row in pairs}
        if tokens:
            await self.lives.patiently(lambda: self.claims.hand_back(tokens))
        for job, row in pairs:
            if row.family not in self.settings.families:
                self.backlog.done(job)  # it fell back to another family's model: that topic has its new message
            else:
                job.alone = True
                self.backlog.wait(job)

    # The end.
    async def drain(self, limit: float) -> tuple[int, int]:
        """Take nothing new, let running jobs finish, hand the rest back; see :func:`streamapp.worker.drain.drain`."""
        self.draining = True
        with suppress(TimeoutError, Unavailable):
            # A claim that is under way is among what runs, or not made.
            async with asyncio.timeout(min(limit, SETTLE)), self._window_lock:
                await self._claimer.settle()
        return await drain(self.lives.running, self.claims, limit)

    def facts(self) -> dict[str, Any]:
        """The part of the status that only the worker knows."""
        partitions: dict[str, list[int]] = {}
        for tp in sorted(self.owned):
            if tp.topic.endswith(("_tasks", "_tasks_urgent")):
                partitions.setdefault(tp.topic, []).append(tp.partition)
        return {
            "engine": self.drawing.state,
            "running": self.drawing.running,
            "jobs": len(self.backlog),
            "full": self.backlog.under_pressure,
            "backlog": self.backlog.loads(self.lives.rates.factor),
            "partitions": {topic: tuple(numbers) for topic, numbers in partitions.items()},
            "checkpoints": dict(self.drawing.checkpoints),
            "loras": dict(self.drawing.loras),
            "done": self.lives.counts.done,
            "failed": self.lives.counts.failed,
            "redelivered": self.backlog.redelivered,
        }
