"""Worker statuses into the tables: the only writer of ``worker_backlog`` and ``lora_state``.

A table may be written inside stream iteration only, so silent workers are deleted when any other one speaks;
readers leave out what is too old by themselves, for the case that nobody speaks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from streamapp import topics
from streamapp.dead import dropped
from streamapp.errors import BadMessage
from streamapp.records import WorkerStatus, check_time, decode
from streamapp.telemetry import get_logger
from tables.lora_state import LoraState
from tables.worker_backlog import WorkerBacklog

log = get_logger(__name__)


def attach(app: Any) -> None:
    """Subscribe to ``worker_status``."""
    topic = app.topic(
        topics.WORKER_STATUS, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )

    @app.agent(topic, name="status")  # type: ignore[untyped-decorator]
    async def status(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            try:
                take(
                    event.value,
                    app.read_models.worker_backlog,
                    app.read_models.lora_state,
                    silence_ms=int(app.settings.worker_silence * 1000),
                    now=app.runtime.clock.now(),
                )
            except BadMessage as error:
                dropped(app.counters, topics.WORKER_STATUS, error)
            yield


def take(
    raw: bytes | None,
    backlog: MutableMapping[str, WorkerBacklog],
    lora_state: MutableMapping[str, LoraState],
    *,
    silence_ms: int,
    now: int | None = None,
) -> None:
    """Write one status; delete the worker that says it is gone and those silent for ``silence_ms``."""
    status = decode(WorkerStatus, raw, limit=1024 * 1024)
    if now is not None:
        check_time(status.at, now)
    key = status.worker_id
    known = backlog.get(key)
    if known is not None and known.at > status.at:
        return  # an old one, delivered again
    if status.state == "gone":
        _delete(key, backlog, lora_state)
    else:
        body = status.model_dump(mode="json", exclude_none=True)
        backlog[key] = WorkerBacklog(worker_id=key, at=status.at, status=body)
        lora_state[key] = LoraState(
            worker_id=key, at=status.at, checkpoints=dict(status.checkpoints), loras=dict(status.loras)
        )
    silent = [other for other, row in list(backlog.items()) if status.at - row.at > silence_ms]
    for other in silent:
        log.info("silent worker forgotten", action="worker_silent", worker_id=other)
        _delete(other, backlog, lora_state)


def _delete(key: str, *tables: MutableMapping[str, Any]) -> None:
    for table in tables:
        if key in table:
            del table[key]
