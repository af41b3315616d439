"""Messages between a process host and its child: small frozen values, pickled over one duplex pipe.

Both ends are the same program on the same machine, started by us: the pipe is not a trust boundary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streamapp.engine.events import Event


@dataclass(frozen=True)
class Call:
    """Parent → child: run this method; an answer is wanted when ``number`` is not 0."""

    number: int
    method: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Reply:
    """Child → parent: what a call returned, or the error it raised."""

    number: int
    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class Happened:
    """Child → parent: the events of one tick, and now and then the engine's figures and the states of its samples."""

    events: list[Event]
    stats: dict[str, Any] | None = None
    states: list[tuple[str, int, bytes]] = field(default_factory=list)


@dataclass(frozen=True)
class Ready:
    """Child → parent: the engine is built."""


@dataclass(frozen=True)
class Beat:
    """Child → parent, from a thread of its own: alive.

    Attributes:
        busy_s: seconds in a step or a decoding; 0: in none.
        tick_s: seconds in a forward like ones before it; 0: in none.
        expected_s: how long the longest of those took.
    """

    busy_s: float
    tick_s: float = 0.0
    expected_s: float = 0.0
