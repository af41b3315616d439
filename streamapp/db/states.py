"""The states of a task and the legal ways between them, in one place.

Every UPDATE that changes a state takes its WHERE clause from :func:`sources`, so the database enforces by
compare-and-set what is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a task stands; the value is what the row and the API say."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FETCHING = "fetching"  # weights that it names are on their way to the disk; no message stands for it yet


#: A task in one of these has its one end; only a replay leaves them.
ENDED: frozenset[State] = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})
#: The opposite: somebody still has to do something.
LIVE: frozenset[State] = frozenset(State) - ENDED
#: Nobody draws it yet.
PENDING: frozenset[State] = frozenset({State.FETCHING, State.QUEUED})

_REPLAY = frozenset({State.QUEUED, State.FETCHING})
LEGAL: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        # Not to running: what arrived is queued first.
        State.FETCHING: frozenset({State.QUEUED, State.FAILED, State.CANCELLED, State.EXPIRED}),
        # A queued task fails only through a worker that claimed it first.
        State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED}),
        # Running to running: an expired lease is taken over by another claim.
        State.RUNNING: ENDED | {State.QUEUED, State.RUNNING},
        State.SUCCEEDED: frozenset(),
        State.FAILED: _REPLAY,
        State.CANCELLED: _REPLAY,
        State.EXPIRED: _REPLAY,
    }
)


def may(before: State, after: State) -> bool:
    """Whether a task in ``before`` may become ``after``."""
    return after in LEGAL[before]


def sources(after: State | Iterable[State]) -> list[str]:
    """The states from which every one of ``after`` may be reached, sorted, for a WHERE clause."""
    wanted = {after} if isinstance(after, State) else set(after)
    return sorted(state.value for state in State if wanted <= LEGAL[state])
