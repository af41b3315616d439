"""Rows as frozen values: what the database layer takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson
from sqlalchemy import Row

from streamapp.db.schema import tasks
from streamapp.db.states import State
from streamapp.generation import GenerationParams
from streamapp.records import TaskEvent


def dump(value: Any) -> str:
    """JSON text as it is kept in a column."""
    return orjson.dumps(value).decode()


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task as submitted; times are relative because only the database knows what time it is."""

    id: str
    user_id: str
    idempotency_key: str | None
    priority: int
    family: str
    model: str
    params: GenerationParams
    request: Mapping[str, Any]
    cost: float
    max_attempts: int
    deadline_ms: int | None = None
    callback_url: str | None = None
    trace: str | None = None
    produce_delay_ms: int = 0
    #: It names weights that are not here: it is queued, and produced, when :class:`streamapp.db.Arrivals` says so.
    fetching: bool = False


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row of ``tasks``: every column, JSON parsed, times in milliseconds of the database's clock."""

    id: str
    user_id: str
    idempotency_key: str | None
    state: State
    priority: int
    family: str
    model: str
    params: GenerationParams
    request: Mapping[str, Any]
    cost: float
    attempts: int
    max_attempts: int
    claim_token: str | None
    claimed_by: str | None
    lease_until: int | None
    not_before: int | None
    cancel_requested: bool
    progress: float
    version: int
    error: dict[str, Any] | None
    history: tuple[dict[str, Any], ...]
    timings: dict[str, float]
    submitted_at: int
    started_at: int | None
    ended_at: int | None
    deadline_at: int | None
    callback_url: str | None
    trace: str | None
    produce_at: int | None
    topic: str | None
    partition: int | None
    offset: int | None


#: What the outbox has to produce is a whole row: the same function makes the message of a fresh and of a due task.
DueTask = TaskRow


_STATE, _PARAMS, _REQUEST, _CANCEL, _ERROR, _HISTORY, _TIMINGS = (
    tasks.c.keys().index(name)
    for name in ("state", "params", "request", "cancel_requested", "error", "history", "timings")
)
_WIDTH = len(tasks.c)


def task_row(row: Row[Any]) -> TaskRow:
    """A result row that starts with every column of ``tasks``, in the table's order, as a value."""
    values: list[Any] = list(row[:_WIDTH])
    values[_STATE] = State(values[_STATE])
    values[_PARAMS] = GenerationParams.model_validate_json(values[_PARAMS])
    values[_REQUEST] = orjson.loads(values[_REQUEST])
    values[_CANCEL] = bool(values[_CANCEL])
    values[_ERROR] = None if values[_ERROR] is None else orjson.loads(values[_ERROR])
    values[_HISTORY] = tuple(orjson.loads(values[_HISTORY]))
    values[_TIMINGS] = orjson.loads(values[_TIMINGS])
    return TaskRow(*values)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One picture of a task; ``key`` is its place in the storage, ``bytes`` its size, ``digest`` its SHA-256."""

    task_id: str
    idx: int
    key: str
    content_type: str
    bytes: int
    width: int
    height: int
    seed: int
    digest: str
    recipe: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cancel:
    """What became of a cancellation; ``state`` is the row's state after it, ``None`` when there is no such task."""

    outcome: Literal["cancelled", "cancelling", "ended", "missing"]
    state: State | None


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What somebody who watches a task wants to know, cheap enough to ask for many at once."""

    id: str
    state: State
    progress: float
    version: int
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker asks about a job it has not claimed; remaining times in milliseconds, 0 or less: none or over.

    ``deadline_ms`` is ``None`` for a task without a deadline.
    """

    state: State
    lease_ms: int
    not_before_ms: int
    cancel_requested: bool
    attempts: int
    deadline_ms: int | None


@dataclass(frozen=True, slots=True)
class End:
    """A worker's word on how a task it claimed ended.

    ``event`` is what ``task_events`` will say; its ``event_id`` and ``at`` are filled in by the database.
    """

    task_id: str
    token: str
    state: State
    event: TaskEvent
    images: Sequence[ImageRow] = ()
    error: Mapping[str, Any] | None = None
    timings: Mapping[str, float] = field(default_factory=dict)


class Produced(NamedTuple):
    """Where the broker put a task's message."""

    task_id: str
    topic: str
    partition: int
    offset: int


class Lost(NamedTuple):
    """A live task that nobody works on, with the place of its last message (``None``: never marked)."""

    task_id: str
    topic: str | None
    partition: int | None
    offset: int | None


class Event(NamedTuple):
    """A record for ``task_events``, still to be sent."""

    seq: int
    body: bytes
    key: str


@dataclass(frozen=True, slots=True)
class Callback:
    """A webhook still to be delivered; ``body`` is the task event that ended the task."""

    event_id: str
    task_id: str
    url: str
    body: bytes
    attempts: int
    created_at: int


@dataclass(frozen=True, slots=True)
class CallbackState:
    """How far a webhook is, times in milliseconds: ``next_at`` is set until it is delivered or given up."""

    attempts: int
    next_at: int | None
    ended_at: int | None
    error: str | None


#: Trait of weights whose files are not here, but can be fetched.
EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A checkpoint that is known here; ``path`` is relative to its source, ``digest`` SHA-256 in hex or empty."""

    name: str
    version: str
    family: str
    source: str
    path: str
    digest: str = ""
    size: int = 0
    traits: Mapping[str, Any] = field(default_factory=dict)
    last_used_at: int | None = None


@dataclass(frozen=True, slots=True)
class LoraRow:
    """A LoRA that is known here; ``family`` is the one it fits, its trigger words are in ``traits``."""

    name: str
    version: str
    family: str
    source: str
    path: str
    digest: str = ""
    size: int = 0
    traits: Mapping[str, Any] = field(default_factory=dict)
    last_used_at: int | None = None
