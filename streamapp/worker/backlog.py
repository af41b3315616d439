"""The jobs this worker holds: every task whose Kafka event is not acked yet, keyed by task.

A rebalance delivers everything un-acked again, also to a worker that was up all along: a second event for a
held job only replaces the event to ack. The Backlog is bounded by back-pressure, never by dropping: above a
mark the partitions that fill it are held on the broker until it falls below the low mark.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from heapq import heapify, heappop, heappush
from sys import intern
from typing import NamedTuple

from streamapp.broker.record import TP
from streamapp.records import ModelLoad, TaskMessage
from streamapp.worker.policy import PRIORITIES, Ticket, Waiting

#: Share of the look-ahead that the urgent topics have on top, for themselves.
URGENT_SHARE = 4
LOW_MARK = 0.75


class Receipt(NamedTuple):
    """One delivery of a message: where it lies and how to ack it."""

    tp: TP
    offset: int
    ack: Callable[[], object]


class Phase(Enum):
    """Where a held job stands on this worker."""

    WAITING = "waiting"  # may join
    HELD = "held"  # somebody else's lease, or not due yet: asked again at ``ready_at``
    RUNNING = "running"  # claimed, until it is done or handed back


@dataclass(slots=True, eq=False)
class Job:
    """A task as this worker sees it: what is needed while it waits, since twenty thousand of them may.

    ``n`` pictures of ``width`` x ``height`` pixels, as drawn. Everything else is read from the row when it is claimed.
    """

    task_id: str
    model: str
    user: str
    priority: int
    cost: float
    submitted_at: int
    n: int
    width: int
    height: int
    receipt: Receipt
    since: float
    loras: tuple[str, ...] = ()
    phase: Phase = Phase.WAITING
    ready_at: float = 0.0
    alone: bool = False  # suspected of killing the engine: runs without neighbours
    acked: bool = False

    @classmethod
    def of(cls, message: TaskMessage, receipt: Receipt, since: float) -> Job:
        """From its message; names that many jobs have in common are kept once."""
        params = message.params
        return cls(
            message.task_id,
            intern(message.model),
            intern(message.user_id),
            min(max(message.priority, 0), len(PRIORITIES) - 1),
            message.cost,
            message.submitted_at,
            params.n,
            params.drawn.width,
            params.drawn.height,
            receipt,
            since,
            tuple(intern(lora.name) for lora in params.loras),
        )

    @property
    def urgent(self) -> bool:
        """Whether it came by the family's urgent topic."""
        return self.receipt.tp.topic.endswith("_urgent")


@dataclass(slots=True)
class _Share:
    """One of the two kinds of topics: how much of it is held, which partitions wait on the broker."""

    limit: int
    jobs: int = 0
    marked: set[TP] = field(default_factory=set)


class Backlog:
    """Held jobs and their indices. Times are the caller's monotonic seconds; deadlines are database ms."""

    def __init__(self, limit: int, release: Callable[[TP], object] | None = None) -> None:
        self.waiting = Waiting()
        self._release = release
        self._jobs: dict[str, Job] = {}
        self._shares = {False: _Share(limit), True: _Share(max(64, limit // URGENT_SHARE))}
        self._fresh: deque[str] = deque()
        self._held: list[tuple[float, int, Job]] = []
        self._deadlines: list[tuple[int, int, Job]] = []
        self._loads: dict[str, list[float]] = {}
        self._count = 0
        self.redelivered = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def get(self, task_id: str) -> Job | None:
        """The held job of a task, if any."""
        return self._jobs.get(task_id)

    def add(self, message: TaskMessage, receipt: Receipt, now: float) -> bool:
        """Take a delivery; True when the task was not held before."""
        held = self._jobs.get(message.task_id)
        if held is not None:
            self.redelivered += 1
            if held.urgent != receipt.tp.topic.endswith("_urgent"):
                self._shares[held.urgent].jobs -= 1
                self._shares[not held.urgent].jobs += 1
            if held.receipt[:2] != receipt[:2]:
                # Another message of the same task, not the same one again: it alone stands for the task now, and the
                # offset of the former must not stop the commit for ever.
                held.receipt.ack()
            held.receipt = receipt
            return False
        job = Job.of(message, receipt, now)
        self._jobs[message.task_id] = job
        self._count += 1
        self._shares[job.urgent].jobs += 1
        load = self._loads.setdefault(message.model, [0, 0.0])
        load[0] += 1
        load[1] += message.cost
        if message.deadline_at is not None:
            heappush(self._deadlines, (message.deadline_at, self._count, job))
            if len(self._deadlines) > 1000 + 2 * len(self._jobs):
                self._deadlines = [entry for entry in self._deadlines if self._jobs.get(entry[2].task_id) is entry[2]]
                heapify(self._deadlines)
        self._wait(job)
        self._fresh.append(message.task_id)
        return True

    # Back-pressure.
    def full(self, topic: str) -> bool:
        """Whether the share of this topic's kind is used up."""
        share = self._shares[topic.endswith("_urgent")]
        return share.jobs >= share.limit

    def mark(self, tp: TP) -> None:
        """``tp`` is being held on the broker; ``release`` is called for it below the low mark."""
        self._shares[tp.topic.endswith("_urgent")].marked.add(tp)

    @property
    def under_pressure(self) -> bool:
        """Whether any partition is held on the broker."""
        return any(share.marked for share in self._shares.values())

    # Phases.
    def start(self, job: Job, now: float) -> None:
        """``job`` was chosen: it no longer waits."""
        ticket = self.waiting.ticket(job.task_id)
        if ticket is not None:
            self.waiting.take(ticket, now)
        job.phase = Phase.RUNNING

    def hold(self, job: Job, ready_at: float) -> None:
        """Ask again about ``job`` at ``ready_at``."""
        self.waiting.remove(job.task_id)
        job.phase, job.ready_at = Phase.HELD, ready_at
        self._count += 1
        heappush(self._held, (ready_at, self._count, job))

    def wait(self, job: Job) -> None:
        """``job`` may join (again)."""
        if self._jobs.get(job.task_id) is job:
            self._wait(job)

    def fresh(self, limit: int) -> list[Job]:
        """At most ``limit`` jobs that nobody looked up in the database yet and that still wait."""
        jobs: list[Job] = []
        while self._fresh and len(jobs) < limit:
            job = self._jobs.get(self._fresh.popleft())
            if job is not None and job.phase is Phase.WAITING:
                jobs.append(job)
        return jobs

    def due(self, now: float) -> list[Job]:
        """Held jobs whose time has come; each is returned once."""
        jobs = []
        while self._held and self._held[0][0] <= now:
            ready_at, _, job = heappop(self._held)
            if job.phase is Phase.HELD and job.ready_at == ready_at and self._jobs.get(job.task_id) is job:
                jobs.append(job)
        return jobs

    def next_due(self) -> float | None:
        """When the next held job may be asked about again."""
        return self._held[0][0] if self._held else None

    def overdue(self, db_now: int) -> list[Job]:
        """Jobs not running whose deadline (database ms) has passed; each is returned once."""
        jobs = []
        while self._deadlines and self._deadlines[0][0] <= db_now:
            job = heappop(self._deadlines)[2]
            if job.phase is not Phase.RUNNING and self._jobs.get(job.task_id) is job:
                jobs.append(job)
        return jobs

    # Leaving.
    def done(self, job: Job) -> None:
        """The task is at its end (or no longer ours to end): ack its newest event and forget it."""
        if self._remove(job):
            job.acked = True
            job.receipt.ack()

    def drop_partitions(self, owned: AbstractSet[TP]) -> int:
        """After an assignment: forget what has not started and lies in partitions that went elsewhere."""
        lost = [job for job in self if job.phase is not Phase.RUNNING and job.receipt.tp not in owned]
        for job in lost:
            self._remove(job)
        for share in self._shares.values():
            share.marked &= owned
        return len(lost)

    def loads(self, factor: Callable[[str], float] | None = None) -> dict[str, ModelLoad]:
        """Jobs and seconds held per model; ``factor`` corrects the estimates of one."""
        return {
            model: ModelLoad(jobs=int(jobs), seconds=round(max(0.0, seconds) * (factor(model) if factor else 1.0), 3))
            for model, (jobs, seconds) in self._loads.items()
            if jobs
        }

    def _wait(self, job: Job) -> None:
        job.phase = Phase.WAITING
        self.waiting.add(Ticket(job.task_id, job.model, job.user, job.priority, job.cost, job.submitted_at, job.since))

    def _remove(self, job: Job) -> bool:
        if self._jobs.get(job.task_id) is not job:
            return False
        del self._jobs[job.task_id]
        self.waiting.remove(job.task_id)
        load = self._loads[job.model]
        load[0] -= 1
        load[1] -= job.cost
        if not load[0]:
            del self._loads[job.model]
        share = self._shares[job.urgent]
        share.jobs -= 1
        if share.marked and share.jobs <= share.limit * LOW_MARK:
            marked, share.marked = share.marked, set()
            for tp in marked:
                if self._release is not None:
                    self._release(tp)
        return True
