"""What happens after a failure, decided in one pure function: the caller acts on the value."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamapp.errors import AppError

FIRST_DELAY = 5.0
LONGEST_DELAY = 20.0
JITTER = 0.2


@dataclass(frozen=True)
class Retry:
    """Do it again after ``delay_s`` seconds (0: at once)."""

    delay_s: float


@dataclass(frozen=True)
class Park:
    """Give up: the task ends failed and goes to the dead letters with ``reason``."""

    reason: str


def decide(
    error: Mapping[str, Any] | AppError, attempts: int, max_attempts: int, *, chance: float | None = None
) -> Retry | Park:
    """Whether a task that failed with ``error`` on its ``attempts``-th attempt is tried again, and when.

    The delay is 5 s after the first failure and doubles to 20 s, spread by a jitter of one fifth so that what
    failed together does not come back together. ``chance`` in [0, 1) replaces the random number (for tests).
    """
    data = error.as_dict() if isinstance(error, AppError) else error
    if not data.get("retryable", False):
        return Park(f"{data.get('code', 'error')}: not retryable")
    if attempts >= max_attempts:
        return Park(f"{data.get('code', 'error')}: failed {attempts} of {max_attempts} attempts")
    delay = min(FIRST_DELAY * 2 ** max(0, attempts - 1), LONGEST_DELAY)
    spread = random.random() if chance is None else chance
    return Retry(delay * (1 + JITTER * (2 * spread - 1)))
