"""A task as the API shows it; everything comes from the row."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from streamapp import read_models
from streamapp.db import ENDED, CallbackState, ImageRow, State, TaskRow
from streamapp.recipe import recipe_body
from streamapp.storage import Storage
from streamapp.submit import Accepted
from web.answers import API, iso

#: How long an address of a picture is good for, in seconds.
URL_SECONDS = 3600 * 24


def accepted(app: Any, done: Accepted) -> dict[str, Any]:
    """The answer to a submit."""
    row = done.row
    return {
        **state(row),
        "estimated_time": estimated(app, row),
        **links(app, row.id),
        **sizes(row),
        "seed": row.params.seed,
        "notes": list(done.notes),
    }


def state(row: TaskRow) -> dict[str, Any]:
    """What changes while a task is worked on; ``progress`` in percent."""
    return {"task_id": row.id, "status": row.state.value, "progress": percent(row.state, row.progress)}


def percent(where: State, progress: float) -> float:
    """Progress of 0 to 1 as percent with one decimal; 100 means that the pictures are there."""
    if where is State.SUCCEEDED:
        return 100.0
    return round(min(max(progress, 0.0), 0.999) * 100, 1)


def links(app: Any, task_id: str) -> dict[str, str]:
    """Where the task, and its live events, are found."""
    address = f"{(app.settings.public_url or '').rstrip('/')}{API}/image/task/{task_id}"
    return {"query_url": address, "events_url": f"{address}/events"}


def sizes(row: TaskRow) -> dict[str, str]:
    """The size that is drawn and the one that is delivered."""
    return {"drawn_at": str(row.params.drawn), "delivered_at": str(row.params.delivered)}


def estimated(app: Any, row: TaskRow) -> float:
    """Seconds until it is likely to have ended: what live workers hold, shared among them, and its own work."""
    if row.state in ENDED:
        return 0.0
    own = row.cost * (1 - min(max(row.progress, 0.0), 1.0))
    if row.state is State.RUNNING or not app.tables_ready:
        return round(own, 1)
    workers = [status for status in read_models.statuses(app) if status.role != "web" and row.family in status.families]
    waiting = sum(load.seconds for status in workers for load in status.backlog.values())
    return round(waiting / max(1, len(workers)) + own, 1)


def whole(
    app: Any, row: TaskRow, images: Sequence[Mapping[str, Any]], *, position: int | None = None
) -> dict[str, Any]:
    """Everything about a task, its exact recipe included."""
    return {
        **brief(app, row, images),
        "queue_position": position,
        "estimated_time": estimated(app, row),
        "recipe": recipe(row),
        "timings": dict(row.timings),
        "history": list(row.history),
        "cancel_requested": row.cancel_requested,
        "max_attempts": row.max_attempts,
        "deadline_at": iso(row.deadline_at),
        "callback_url": row.callback_url,
        "idempotency_key": row.idempotency_key,
        "version": row.version,
    }


def brief(app: Any, row: TaskRow, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A task as one of many."""
    params = row.params
    return {
        **state(row),
        "text": params.text,
        "model": row.model,
        "fallback_model": None if params.fallback is None else params.fallback.model,
        "instead_of": None if params.instead_of is None else params.instead_of.model_dump(),
        "family": row.family,
        "priority": f"P{row.priority}",
        "batch_size": params.n,
        **sizes(row),
        "notes": list(params.notes),
        "submitted_at": iso(row.submitted_at),
        "started_at": iso(row.started_at),
        "ended_at": iso(row.ended_at),
        "attempts": row.attempts,
        "worker_id": row.claimed_by,
        "images": list(images),
        "error": row.error,
        **links(app, row.id),
    }


def recipe(row: TaskRow) -> dict[str, Any]:
    """A body that draws the whole task again; each picture carries one of its own."""
    body = recipe_body(row.params, 0)
    body["params"]["batch_size"] = row.params.n
    return body


def callback(row: TaskRow, sent: CallbackState | None) -> dict[str, Any] | None:
    """How far the webhook of a task is: pending, delivered or failed; ``None`` when it has no ``callback_url``."""
    if row.callback_url is None:
        return None
    if sent is None:
        return {"state": "pending", "attempts": 0, "next_at": None, "ended_at": None, "last_error": None}
    pending = sent.ended_at is None
    return {
        "state": "pending" if pending else "delivered" if sent.error is None else "failed",
        "attempts": sent.attempts,
        "next_at": iso(sent.next_at),
        "ended_at": iso(sent.ended_at),
        "last_error": sent.error,
    }


async def pictures(storage: Storage, rows: Sequence[ImageRow], *, recipes: bool = True) -> list[dict[str, Any]]:
    """The pictures of a task with signed addresses."""
    addresses = await asyncio.gather(*(storage.url(row.key, expires_s=URL_SECONDS) for row in rows))
    return [
        {
            "index": row.idx,
            "url": address,
            "content_type": row.content_type,
            "bytes": row.bytes,
            "width": row.width,
            "height": row.height,
            "seed": row.seed,
            "digest": row.digest,
            **({"recipe": dict(row.recipe)} if recipes else {}),
        }
        for row, address in zip(rows, addresses, strict=True)
    ]
