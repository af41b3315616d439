"""Every record that crosses a topic, and the one function that decodes them.

Topics carry bytes: a typed topic stops for good at its second malformed message. Readers skip fields
they do not know, so a newer writer does not stop an older reader; an unknown major version does.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from streamapp.errors import BadMessage
from streamapp.generation import GenerationParams, LoraRef

R = TypeVar("R", bound="WireRecord")

#: What a foreign record may say without breaking sums, columns or JSON of ours.
Moment = Annotated[int, Field(ge=0, lt=2**53)]  # ms since 1970
Offset = Annotated[int, Field(ge=0, lt=2**63)]
Partition = Annotated[int, Field(ge=0, lt=2**31)]
Amount = Annotated[int, Field(ge=0, le=10**9)]
# Wide: a clock that was set back must not keep us from writing how a task ended.
Span = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]  # seconds
#: Far above what is ever drawn or delivered.
MAX_SIDE = 65_536
#: Clocks of hosts differ; a record from further ahead than this is wrong, and would make all others look old. In ms.
AHEAD = 3_600_000


class WireRecord(BaseModel):
    """Base of the records; ``kind`` tells them apart on a topic that somebody else writes to as well."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def encode(self) -> bytes:
        """JSON bytes with kind and schema version."""
        body = self.model_dump(mode="json", exclude_none=True)
        return orjson.dumps({"kind": self.KIND, "v": self.VERSION, **body})


def decode(record: type[R], raw: bytes | None, *, limit: int = 64 * 1024) -> R:
    """Bytes from a topic as ``record``.

    Raises:
        BadMessage: for ``None``, anything above ``limit`` bytes, malformed JSON, a foreign kind, an
            unknown version or missing fields; ``details["reason"]`` is one of ``empty``, ``too_large``,
            ``malformed``, ``foreign``, ``version``, ``fields``.
    """
    if raw is None:
        raise BadMessage("the message has no value", reason="empty")
    if len(raw) > limit:
        raise BadMessage(f"the message has {len(raw)} bytes, the limit is {limit}", reason="too_large")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadMessage(f"the message is not JSON: {error}", reason="malformed") from error
    if not isinstance(body, dict) or body.get("kind") != record.KIND:
        raise BadMessage(f"the message is not a {record.KIND}", reason="foreign")
    if body.get("v") != record.VERSION:
        raise BadMessage(f"{record.KIND} version {body.get('v')!r} is not known here", reason="version")
    try:
        return record.model_validate(body)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadMessage(f"{record.KIND}: {where}: {error.errors()[0]['msg']}", reason="fields") from error


def check_time(at: int, now: int) -> None:
    """Refuse a record from the future (ms): tables forget what is old next to the newest record.

    Raises:
        BadMessage: ``at`` is more than an hour after ``now``.
    """
    if at > now + AHEAD:
        raise BadMessage("the message is from the future", reason="future")


class TaskMessage(WireRecord):
    """One task on its family's topic: references only, never pictures. The row is the truth; this is delivery."""

    KIND: ClassVar[str] = "task"

    task_id: str = Field(min_length=1, max_length=64)
    user_id: str
    family: str
    model: str
    loras: tuple[LoraRef, ...] = ()
    params: GenerationParams
    priority: int  # one that is not known here counts as the nearest
    cost: Span = Field(ge=0)  # estimated GPU-seconds, for backlog sums and routing
    submitted_at: Moment  # ms
    deadline_at: Moment | None = None  # ms
    trace: str | None = None  # W3C traceparent

    @field_validator("params")
    @classmethod
    def drawable(cls, params: GenerationParams) -> GenerationParams:
        """Sizes that an engine can be asked about."""
        for size in (params.drawn, params.delivered):
            if not (1 <= size.width <= MAX_SIDE and 1 <= size.height <= MAX_SIDE):
                raise ValueError(f"{size} is no size")
        return params


class ModelLoad(BaseModel):
    """What one worker still has to do for one model."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    jobs: Amount
    seconds: Span


class WorkerStatus(WireRecord):
    """One worker's absolute state, keyed by worker id on ``worker_status``; sent on change and as keep-alive."""

    KIND: ClassVar[str] = "worker_status"

    worker_id: str
    host: str
    pid: Offset
    port: Offset  # of its own views
    role: str
    families: tuple[str, ...]
    device: str
    engine: str  # starting, ready, restarting, failed, closed
    state: str  # running, draining, gone
    started_at: Moment  # ms
    at: Moment  # ms, of this status
    running: Amount = 0  # samples in the engine
    jobs: Amount = 0  # jobs held, waiting and running
    full: bool = False
    backlog: dict[str, ModelLoad] = {}
    partitions: dict[str, tuple[Partition, ...]] = {}  # task topic -> partitions owned
    checkpoints: dict[str, str] = {}  # resident name -> tier
    loras: dict[str, str] = {}
    done: Amount = 0
    failed: Amount = 0
    redelivered: Amount = 0  # messages of jobs that were held already


class TaskEvent(WireRecord):
    """Something that happened to a task, on ``task_events``, keyed by task id; facts that no answer waits for."""

    KIND: ClassVar[str] = "task_event"

    event_id: str
    task_id: str
    event: str  # submitted | started | succeeded | failed | cancelled | expired
    at: Moment  # ms
    user_id: str
    family: str
    model: str
    worker_id: str | None = None
    shape: str  # "128x128", as drawn
    with_lora: bool = False
    images: Amount = 0
    steps: Amount = 0
    seconds: dict[str, Span] = {}  # queue, load, encode, denoise, decode, post
    error: str | None = None


class DeadLetter(WireRecord):
    """What could not be worked off, with its history, on ``dead_letters``."""

    KIND: ClassVar[str] = "dead_letter"

    task_id: str | None = None  # of a message that nobody could read
    topic: str
    partition: Partition
    offset: Offset
    reason: str
    message: str
    at: Moment  # ms
    attempts: int = 0
    history: tuple[dict[str, object], ...] = ()
    raw: str | None = None  # base64 of a message that could not be read, cut at 512 KiB
    size: int | None = None  # bytes of that message


class ThroughputCount(WireRecord):
    """Absolute counters of one partition's window, on ``throughput_totals``; the reader sums over partitions."""

    KIND: ClassVar[str] = "throughput_count"

    window: str  # "minute" | "hour"
    start: Moment  # ms
    family: str
    shape: str
    with_lora: bool
    partition: Partition
    submitted: Offset = 0
    finished: Offset = 0
    failed: Offset = 0
    images: Offset = 0
    steps: Offset = 0
    seconds: dict[str, float] = {}

    @property
    def key(self) -> str:
        """Table key: one per window, family, shape, LoRA use and source partition."""
        lora = "lora" if self.with_lora else "plain"
        return f"{self.window}|{self.start}|{self.family}|{self.shape}|{lora}|{self.partition}"
