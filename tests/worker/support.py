"""Messages and jobs for the tests of the worker."""

from __future__ import annotations

from typing import Any

from streamapp.broker.record import TP
from streamapp.generation import GenerationParams, Size
from streamapp.records import TaskMessage
from streamapp.worker.backlog import Receipt


def params(**given: Any) -> GenerationParams:
    """Complete parameters with defaults."""
    size = Size(width=128, height=128)
    base: dict[str, Any] = {
        "text": "a cute panda",
        "prompt": "a cute panda",
        "model": "pocket",
        "family": "sd15",
        "delivered": size,
        "drawn": size,
        "steps": 4,
        "guidance": 3.0,
        "sampler": "DDIM",
        "seed": 7,
    }
    return GenerationParams(**{**base, **given})


def message(task_id: str, **given: Any) -> TaskMessage:
    """A task message; ``n`` and ``model`` also reach its parameters."""
    inner = {key: given.pop(key) for key in ("n", "steps", "seed") if key in given}
    base: dict[str, Any] = {
        "task_id": task_id,
        "user_id": "local",
        "family": "sd15",
        "model": "pocket",
        "priority": 2,
        "cost": 1.0,
        "submitted_at": 1_000,
    }
    base |= given
    return TaskMessage(params=params(model=base["model"], **inner), **base)


class Acks:
    """Receipts that note what was acked."""

    def __init__(self) -> None:
        self.acked: list[tuple[TP, int]] = []
        self._next = 0

    def receipt(self, topic: str = "sd15_tasks", partition: int = 0, offset: int | None = None) -> Receipt:
        """A receipt at the next offset, or the given one."""
        number = self._next if offset is None else offset
        self._next = max(self._next, number) + 1
        tp = TP(topic, partition)
        return Receipt(tp, number, lambda: self.acked.append((tp, number)))
