"""Which waiting job joins the engine next. No clock, no I/O: times come in as arguments.

Priority first; inside a priority users share fairly (start-time fair queueing, Goyal et al. 1996: the user
who received least cost goes next); inside a user the oldest first. The current checkpoint is kept while that
is cheapest. Every structure is a heap with lazy deletion, so a decision costs O(models + log jobs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from math import inf

PRIORITIES = range(4)
#: What a second of waiting of one job weighs, by priority.
WEIGHTS = (1000.0, 100.0, 10.0, 1.0)
#: Seconds after which a job counts as overdue, by priority.
CEILINGS = (5.0, 30.0, 300.0, 1800.0)
#: Overdue jobs of lower priority get at least one pick in this many.
OVERDUE_TURN = 4
#: A switch must save this many times what it costs, and a checkpoint stays at least this many switch times.
PATIENCE = 4.0
#: Even a free switch splits the batch: never count it below this many seconds.
LEAST_SWITCH = 0.25


def _free(_: str) -> float:
    return LEAST_SWITCH


@dataclass(slots=True, eq=False)
class Ticket:
    """A waiting job as the policy sees it: ``cost`` in seconds, ``since`` on the caller's clock."""

    task_id: str
    model: str
    user: str
    priority: int
    cost: float
    order: int  # submitted_at, ms: first come, first served inside a user
    since: float


@dataclass(slots=True)
class _Lane:
    """The waiting jobs of one model and priority."""

    users: dict[str, list[tuple[int, int, Ticket]]] = field(default_factory=dict)
    turns: list[tuple[float, int, str]] = field(default_factory=list)
    ages: list[tuple[float, int, Ticket]] = field(default_factory=list)
    jobs: int = 0
    cost: float = 0.0


class Waiting:
    """All jobs that could join now, indexed for :meth:`next`."""

    def __init__(self) -> None:
        self.current: str | None = None
        self._tickets: dict[str, Ticket] = {}
        self._models: dict[str, tuple[_Lane, ...]] = {}
        self._virtual: dict[tuple[int, str], float] = {}
        self._floor = [0.0] * len(PRIORITIES)
        self._switched = -inf
        self._left: dict[str, float] = {}
        self._since_overdue = 0
        self._count = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._tickets

    def add(self, ticket: Ticket) -> None:
        """A job waits. One with the same task id is replaced."""
        self.remove(ticket.task_id)
        self._count += 1
        lanes = self._models.get(ticket.model)
        if lanes is None:
            lanes = self._models[ticket.model] = tuple(_Lane() for _ in PRIORITIES)
        lane = lanes[ticket.priority]
        self._tickets[ticket.task_id] = ticket
        lane.jobs += 1
        lane.cost += ticket.cost
        heappush(lane.ages, (ticket.since, self._count, ticket))
        queue = lane.users.get(ticket.user)
        if queue is None:
            queue = lane.users[ticket.user] = []
            heappush(lane.turns, (self._virtual_of(ticket), self._count, ticket.user))
        heappush(queue, (ticket.order, self._count, ticket))

    def remove(self, task_id: str) -> None:
        """A job no longer waits; unknown ids are ignored."""
        ticket = self._tickets.pop(task_id, None)
        if ticket is None:
            return
        lanes = self._models[ticket.model]
        lane = lanes[ticket.priority]
        lane.jobs -= 1
        lane.cost = lane.cost - ticket.cost if lane.jobs else 0.0
        if not any(other.jobs for other in lanes):
            del self._models[ticket.model]
            self._left.pop(ticket.model, None)
        elif len(lane.ages) > 64 and len(lane.ages) > 2 * lane.jobs:
            self._compact(lane)

    def ticket(self, task_id: str) -> Ticket | None:
        """The waiting job of a task."""
        return self._tickets.get(task_id)

    def next(self, now: float, switch: Callable[[str], float] = _free) -> Ticket | None:
        """The job that should join now (it stays until :meth:`take`), or None when nothing waits.

        ``switch`` gives the measured seconds of switching to a model.
        """
        model = self._model(now, switch)
        if model is None:
            return None
        lanes = self._models[model]
        if self._since_overdue + 1 >= OVERDUE_TURN and (late := self._overdue(lanes, now)) is not None:
            return late
        return self._head(next(lane for lane in lanes if lane.jobs))

    def take(self, ticket: Ticket, now: float) -> None:
        """``ticket`` joins the engine: charge its user, remember its model as current."""
        key = (ticket.priority, ticket.user)
        start = self._virtual_of(ticket)
        self._virtual[key] = start + max(ticket.cost, 1e-6)
        self._floor[ticket.priority] = max(self._floor[ticket.priority], start)
        if len(self._virtual) > 10_000:
            self._virtual = {k: v for k, v in self._virtual.items() if v > self._floor[k[0]]}
        late = now - ticket.since >= CEILINGS[ticket.priority]
        self._since_overdue = 0 if late else self._since_overdue + 1
        if self.current != ticket.model:
            if self.current in self._models:
                self._left[self.current] = now
            self.current, self._switched = ticket.model, now
        self.remove(ticket.task_id)

    def soon(self, now: float, switch: Callable[[str], float] = _free, most: int = 4) -> list[Ticket]:
        """Jobs that will join before long: at most so many of the current model, and of the one that comes next."""
        others = [name for name in self._models if name != self.current]
        following = max(others, key=lambda name: self._pull(name, now) / self._run(name, switch), default=None)
        found: list[Ticket] = []
        for name in (self.current, following):
            lanes = self._models.get(name, ()) if name is not None else ()
            queues = (queue for lane in lanes for queue in lane.users.values())
            waiting = (entry[2] for queue in queues for entry in queue[:most])
            found += islice((one for one in waiting if self._tickets.get(one.task_id) is one), most)
        return found

    def models(self) -> Iterator[str]:
        """Models that have waiting jobs."""
        return iter(self._models)

    # Which model.
    def _model(self, now: float, switch: Callable[[str], float]) -> str | None:
        here = self._models.get(self.current) if self.current is not None else None
        others = [name for name in self._models if name != self.current]
        if here is None:
            # Also when a switch is due anyway, P0 goes first.
            choice = [name for name in others if self._models[name][0].jobs] or others
            return max(choice, key=lambda name: self._pull(name, now) / self._run(name, switch), default=None)
        if not others:
            return self.current
        first = min(p for p in PRIORITIES if here[p].jobs)
        pressing = [name for name in others if first > 0 and self._models[name][0].jobs]
        if pressing:  # P0 waits elsewhere and not here
            return max(pressing, key=lambda name: self._age(self._models[name][0], now))
        mine = self._weight(here)
        late_here = any(self._late(here[p], p, now) for p in PRIORITIES)
        ready = []
        for name in others:
            price = PATIENCE * max(switch(name), LEAST_SWITCH)
            if now - self._switched < price:
                continue
            lanes = self._models[name]
            urgent = any(lanes[p].jobs for p in PRIORITIES[:2] if p < first)
            late = not late_here and any(self._late(lanes[p], p, now) for p in PRIORITIES)
            gain = self._pull(name, now) / (price * (mine + self._weight(lanes)))
            if gain > 1 or late or urgent:
                ready.append((gain, name))
        return max(ready)[1] if ready else self.current

    def _pull(self, name: str, now: float) -> float:
        """Weighted seconds its jobs waited since the model was last served."""
        lanes = self._models[name]
        oldest = max(self._age(lane, now) for lane in lanes)
        served = self._left.get(name)
        elapsed = oldest if served is None else min(oldest, now - served)
        return self._weight(lanes) * max(elapsed, 1e-9)

    def _run(self, name: str, switch: Callable[[str], float]) -> float:
        """Seconds a switch and all its waiting work take."""
        return max(switch(name), LEAST_SWITCH) + sum(lane.cost for lane in self._models[name])

    @staticmethod
    def _weight(lanes: tuple[_Lane, ...]) -> float:
        return sum(WEIGHTS[p] * lanes[p].jobs for p in PRIORITIES)

    # Which lane, which user, which job.
    def _overdue(self, lanes: tuple[_Lane, ...], now: float) -> Ticket | None:
        """The job that is furthest past the ceiling of its priority."""
        late = [p for p in PRIORITIES if self._late(lanes[p], p, now)]
        if not late:
            return None
        return lanes[max(late, key=lambda p: self._age(lanes[p], now) / CEILINGS[p])].ages[0][2]

    def _late(self, lane: _Lane, priority: int, now: float) -> bool:
        return lane.jobs > 0 and self._age(lane, now) >= CEILINGS[priority]

    def _age(self, lane: _Lane, now: float) -> float:
        """Seconds the oldest job of a lane waits; 0 when empty."""
        ages = lane.ages
        while ages and self._tickets.get(ages[0][2].task_id) is not ages[0][2]:
            heappop(ages)
        return now - ages[0][0] if ages else 0.0

    def _head(self, lane: _Lane) -> Ticket:
        """The oldest job of the user whose turn it is; the lane has at least one."""
        while True:
            virtual, number, user = lane.turns[0]
            queue = lane.users[user]
            while queue and self._tickets.get(queue[0][2].task_id) is not queue[0][2]:
                heappop(queue)
            if not queue:
                heappop(lane.turns)
                del lane.users[user]
                continue
            actual = self._virtual_of(queue[0][2])
            if actual > virtual:
                heapreplace(lane.turns, (actual, number, user))
                continue
            return queue[0][2]

    def _virtual_of(self, ticket: Ticket) -> float:
        """Cost the user received in this priority; one who was away does not collect credit."""
        return max(self._virtual.get((ticket.priority, ticket.user), 0.0), self._floor[ticket.priority])

    def _compact(self, lane: _Lane) -> None:
        """Throw the lazily deleted out, so that a lane is never more than twice its live jobs."""
        lane.ages = [entry for entry in lane.ages if self._tickets.get(entry[2].task_id) is entry[2]]
        heapify(lane.ages)
        for user in list(lane.users):
            kept = [entry for entry in lane.users[user] if self._tickets.get(entry[2].task_id) is entry[2]]
            if kept:
                heapify(kept)
                lane.users[user] = kept
            else:
                lane.users[user] = []
