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
CRASHED = "engine_crashed"
#: Weights that the engine had forgotten: loading them again helps, and nothing is gained by waiting.
AT_ONCE = frozenset({"unknown_model", "unknown_lora"})
#: Another model would refuse the same request; unless what is wrong with it is its model.
REQUEST = frozenset({"invalid_request", "invalid_job", "too_large", "unknown_sampler", "unknown_schedule"})

#: Fields of a request that the fallback model is drawn with, too: what is wrong with them stays wrong.
SAME = frozenset({"loras", "controls"})


@dataclass(frozen=True)
class Retry:
    """Do it again after ``delay_s`` seconds (0: at once)."""

    delay_s: float


@dataclass(frozen=True)
class Suspect:
    """Do it again at once, alone in the engine: it died with several in it. Nobody's attempt counts."""


@dataclass(frozen=True)
class FallBack:
    """Do it again at once with the fallback model, attempts counted from zero; ``reason`` is for the answer."""

    reason: str


@dataclass(frozen=True)
class Park:
    """Give up: the task ends failed and goes to the dead letters with ``reason``."""

    reason: str


Verdict = Retry | Suspect | FallBack | Park


def decide(
    error: Mapping[str, Any] | AppError,
    attempts: int,
    max_attempts: int,
    *,
    fallback: bool = False,
    company: int = 1,
    chance: float | None = None,
) -> Verdict:
    """What becomes of a task that failed with ``error`` on its ``attempts``-th attempt.

    The delay is 5 s after the first failure and doubles to 20 s, spread by a jitter of one fifth so that what
    failed together does not come back together. ``fallback``: another model is named and was not tried yet.
    ``company``: tasks that the engine died with. ``chance`` in [0, 1) replaces the random number (for tests).
    """
    data = error.as_dict() if isinstance(error, AppError) else error
    code = str(data.get("code", "error"))
    if code == CRASHED and company > 1:
        return Suspect()
    again = bool(data.get("retryable", False))
    if again and attempts < max_attempts:
        return Retry(0.0 if code in AT_ONCE and attempts <= 1 else _delay(attempts, chance))
    reason = f"{code}: failed {attempts} of {max_attempts} attempts" if again else f"{code}: not retryable"
    if fallback and data.get("field") not in SAME and (code not in REQUEST or data.get("field") == "model"):
        return FallBack(reason)
    return Park(reason)


def _delay(attempts: int, chance: float | None) -> float:
    """Seconds until the next attempt."""
    delay: float = min(FIRST_DELAY * 2 ** max(0, attempts - 1), LONGEST_DELAY)
    spread = random.random() if chance is None else chance
    return delay * (1 + JITTER * (2 * spread - 1))
