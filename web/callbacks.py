"""What a webhook says: the task as ``GET /image/task/{task_id}`` shows it, with addresses that work from outside."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from streamapp.callbacks import send_callbacks
from streamapp.db import Callback, State
from streamapp.errors import NotFound
from streamapp.records import TaskEvent, decode
from web.answers import iso
from web.task_json import pictures, whole


def attach(app: Any) -> None:
    """Send webhooks from this process."""

    async def send() -> None:
        await send_callbacks(app.runtime, partial(body, app))

    app.background.append(send)


async def body(app: Any, call: Callback) -> bytes:
    """``{type, timestamp, data}`` as Standard Webhooks advises; ``type`` is ``task.`` and the state.

    Raises:
        NotFound: the task was deleted.
        Unavailable: database or storage do not answer.
    """
    runtime = app.runtime
    event = decode(TaskEvent, call.body)
    row = await runtime.tasks.get(call.task_id)
    if row is None:
        raise NotFound(f"there is no task {call.task_id}")
    images = []
    if event.event == State.SUCCEEDED:
        images = await pictures(runtime.storage, (await runtime.tasks.images([row.id]))[row.id])
    task = whole(app, row, images)
    if row.ended_at != event.at:
        task |= _as_it_ended(event)
    message = {"type": f"task.{event.event}", "timestamp": iso(event.at), "data": _absolute(app, task)}
    return orjson.dumps(message)


def _as_it_ended(event: TaskEvent) -> dict[str, Any]:
    """The task was queued again since: what this webhook is about, from its own record."""
    return {
        "status": event.event,
        "progress": 0.0,  # only what brought no picture is queued again
        "ended_at": iso(event.at),
        "timings": dict(event.seconds),
        "error": None if event.error is None else {"code": event.error, "message": event.error},
        "version": int(event.event_id.rpartition(":")[2]),
        "estimated_time": 0.0,
        "worker_id": event.worker_id,
    }


def _absolute(app: Any, task: Mapping[str, Any]) -> dict[str, Any]:
    """Every address of ours with scheme and host: a receiver has no page that it could be relative to."""
    settings = app.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = (settings.public_url or f"http://{host}:{app.port}").rstrip("/")

    def whole_address(address: str) -> str:
        return base + address if address.startswith("/") else address

    return {
        **task,
        "query_url": whole_address(task["query_url"]),
        "events_url": whole_address(task["events_url"]),
        "images": [{**image, "url": whole_address(image["url"])} for image in task["images"]],
    }
