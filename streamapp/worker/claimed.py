"""A claimed job as plain state, and why one may be stopped from outside."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum

from streamapp.db import TaskRow
from streamapp.worker.backlog import Job


class Why(Enum):
    """Why a running job was stopped from outside."""

    CANCEL = "cancel"
    LOST = "lost"
    DRAIN = "drain"


@dataclass(eq=False, slots=True)
class Claimed:
    """One claimed job while it runs."""

    job: Job
    row: TaskRow
    token: str
    began: float = field(default_factory=time.monotonic)
    progress: float = 0.0
    why: Why | None = None
    joined: bool = False  # its samples are in the engine (or were)
    ending: bool = False  # its end is being written: too late to stop it
    seconds: dict[str, float] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def stop(self, why: Why) -> None:
        """Stop drawing it, unless it is at its end already."""
        if self.why is None and not self.ending and self.task is not None:
            self.why = why
            self.task.cancel()


def failed_last_by(code: str, row: TaskRow) -> bool:
    """Whether the newest failure of a task was of this kind; a replay in between does not make it harmless."""
    codes = (past.get("code") for past in reversed(row.history))
    return next((found for found in codes if found != "replayed"), None) == code


@dataclass
class Counts:
    """What this worker did since it started."""

    done: int = 0
    failed: int = 0
    crashes: int = 0
    lost: int = 0
