"""Which partition a new task goes to: the one whose owner would finish it first.

A worker's finishing time is its backlog in seconds, plus loading the checkpoint and the LoRAs it does not
hold, plus what this router itself sent since that worker's last status. Statuses are up to some seconds old,
so without the last part a burst would all go to whoever was idle last.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from streamapp.records import TaskMessage, WorkerStatus

#: Seconds to make a checkpoint ready by the tier it is in, until a worker says better.
LOAD_SECONDS: Mapping[str, float] = {"vram": 0.0, "ram": 2.0, "disk": 10.0}
NOWHERE_SECONDS = 60.0
LORA_SECONDS = 0.5


@dataclass
class _Owner:
    """One worker as the router sees it."""

    status: WorkerStatus
    waiting: float
    sent: float = 0.0
    turn: dict[str, int] = field(default_factory=dict)


class Router:
    """Chooses partitions; keeps only what it sent since each worker's last status."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self._owners: dict[str, _Owner] = {}

    def partition(self, topic: str, message: TaskMessage, statuses: Iterable[WorkerStatus]) -> int:
        """The partition of ``topic`` whose owner would finish ``message`` first; a hash while no owner is known."""
        self._refresh(statuses)
        owners = [owner for owner in self._owners.values() if self._owned(owner.status, topic)]
        if not owners:
            return zlib.crc32(message.task_id.encode()) % self.partitions
        best = min(owners, key=lambda owner: (self._finish(owner, message), owner.status.worker_id))
        best.sent += message.cost
        owned = self._owned(best.status, topic)
        turn = best.turn.get(topic, zlib.crc32(best.status.worker_id.encode()))
        best.turn[topic] = turn + 1
        return owned[turn % len(owned)]

    def _owned(self, status: WorkerStatus, topic: str) -> list[int]:
        """Partitions that exist: a worker with other settings, or a foreign record, may tell of more."""
        return [number for number in status.partitions.get(topic, ()) if number < self.partitions]

    def _refresh(self, statuses: Iterable[WorkerStatus]) -> None:
        """Take over newer statuses; forget workers that are gone or leave."""
        seen = set()
        for status in statuses:
            if status.state != "running" or status.engine == "failed" or not status.partitions:
                continue
            seen.add(status.worker_id)
            known = self._owners.get(status.worker_id)
            if known is None or known.status.at != status.at:
                waiting = sum(load.seconds for load in status.backlog.values())
                turn = known.turn if known else {}
                self._owners[status.worker_id] = _Owner(status, waiting, turn=turn)
        for gone in self._owners.keys() - seen:
            del self._owners[gone]

    @staticmethod
    def _finish(owner: _Owner, message: TaskMessage) -> float:
        """Seconds until ``owner`` would have finished ``message``."""
        status = owner.status
        seconds = owner.waiting + owner.sent + message.cost
        if message.model not in status.backlog or not status.backlog[message.model].jobs:
            tier = status.checkpoints.get(message.model)
            seconds += NOWHERE_SECONDS if tier is None else LOAD_SECONDS.get(tier, NOWHERE_SECONDS)
        seconds += LORA_SECONDS * sum(1 for lora in message.loras if lora.name not in status.loras)
        if status.engine != "ready":
            seconds += NOWHERE_SECONDS
        return seconds * (4 if status.full else 1)
