"""What the parent of an engine's process knows of every job that is not at its end, to have it drawn again."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamapp.engine.events import Event
from streamapp.engine.job import Job
from streamapp.engine.wire import Call

#: Kinds of events after which a sample is not in the engine any more.
OVER = frozenset({"image", "failed", "cancelled"})
#: Deaths after which a job is drawn alone: it may be what kills the process, and shall not take others with it.
SUSPECT = 2


@dataclass
class Unfinished:
    """One job.

    Attributes:
        job: None for one that came as parked samples only.
        left: its images that are not at their end.
        states: the last known state of those that were under way.
        deaths: processes that died while they held it.
    """

    job: Job | None
    left: set[int]
    states: dict[int, bytes] = field(default_factory=dict)
    deaths: int = 0

    def call(self, job_id: str) -> Call:
        """Have what is left of it drawn, from where it was."""
        return Call(0, "redraw", (job_id, self.job, sorted(self.left), self.states))


class UnfinishedJobs:
    """All of them; those that may kill the process wait for their turn, one at a time."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._jobs: dict[str, Unfinished] = {}
        self._held: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job_id: str, job: Job) -> Unfinished:
        """A job that is submitted."""
        self._jobs[job_id] = Unfinished(job, set(range(job.num_images)))
        return self._jobs[job_id]

    def add_state(self, job_id: str, index: int, state: bytes) -> None:
        """A sample that is resumed."""
        known = self._jobs.setdefault(job_id, Unfinished(None, set()))
        known.left.add(index)
        known.states[index] = state

    def keep(self, job_id: str, index: int, state: bytes) -> None:
        """The state of a sample that is under way; of an unknown one it is dropped."""
        known = self._jobs.get(job_id)
        if known is not None and index in known.left:
            known.states[index] = state

    def take(self, job_id: str, index: int) -> None:
        """An image (−1: all of them) that is not the engine's any more."""
        known = self._jobs.get(job_id)
        if known is None:
            return
        known.left.discard(index)
        known.states.pop(index, None)
        if index < 0 or not known.left:
            del self._jobs[job_id]

    def account(self, event: Event) -> None:
        """Something that happened to a sample."""
        if event.kind in OVER:
            self.take(event.job_id, event.index)

    def died(self) -> list[str]:
        """Count the death of a process against the jobs that it held; those that are given up, forgotten here."""
        for job_id, known in self._jobs.items():
            known.deaths += job_id not in self._held
        lost = [job_id for job_id, known in self._jobs.items() if known.deaths >= self._attempts]
        for job_id in lost:
            del self._jobs[job_id]
        return lost

    def clear(self) -> list[str]:
        """Forget all; their ids."""
        jobs, self._jobs, self._held = list(self._jobs), {}, []
        return jobs

    def again(self) -> list[Call]:
        """What a new process is asked to draw: all that is not suspect, else the first suspect alone."""
        suspects = [job_id for job_id, known in self._jobs.items() if known.deaths >= SUSPECT]
        self._held = suspects
        calls = [known.call(job_id) for job_id, known in self._jobs.items() if job_id not in suspects]
        return calls or self.next_suspect()

    def next_suspect(self) -> list[Call]:
        """The next job that is drawn alone, once nothing else is in the process."""
        self._held = [job_id for job_id in self._held if job_id in self._jobs]
        if not self._held or len(self._jobs) > len(self._held):
            return []
        job_id = self._held.pop(0)
        return [self._jobs[job_id].call(job_id)]
