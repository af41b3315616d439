"""Tasks of a user: one, many, and the end of one."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from aiohttp import web

from streamapp.db import State
from streamapp.errors import Conflict, InvalidRequest, NotFound
from web.answers import API, ok
from web.auth import USER
from web.task_json import brief, callback, pictures, state, whole

MAX_ID = 64
#: What ids are made of; some databases take one with a blank behind it for the same.
PLAIN = re.compile(r"[A-Za-z0-9._-]+\Z")
MAX_PAGE = 200


def attach(app: Any) -> None:
    """Add the routes."""
    views = Views(app)
    router = app.web.web_app.router
    router.add_get(f"{API}/image/tasks", views.many)
    router.add_get(f"{API}/image/task/{{task_id}}", views.one)
    router.add_delete(f"{API}/image/task/{{task_id}}", views.cancel)


class Views:
    """Handlers over the rows; other users' tasks do not exist for them."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def one(self, request: web.Request) -> web.Response:
        """A task with its pictures and its exact recipe."""
        return ok(await show(self._app, request.match_info["task_id"], request[USER]))

    async def many(self, request: web.Request) -> web.Response:
        """The newest tasks, newest first; ``before`` takes the last id of the page before."""
        runtime, query = self._app.runtime, request.query
        if unknown := sorted(set(query) - {"status", "limit", "before"}):
            raise InvalidRequest(f"{unknown[0][:60]} is not a parameter here; known: status, limit, before")
        before = query.get("before")
        if before is not None and len(before) > MAX_ID:
            raise InvalidRequest("before must be a task id", field="before")
        limit = _limit(query.get("limit", "20"))
        rows = await runtime.tasks.page(request[USER], _state(query.get("status")), before, limit)
        images = await runtime.tasks.images([row.id for row in rows])
        shown = await asyncio.gather(*(pictures(runtime.storage, images[row.id], recipes=False) for row in rows))
        tasks = [brief(self._app, row, some) for row, some in zip(rows, shown, strict=True)]
        return ok({"tasks": tasks, "next_before": rows[-1].id if len(rows) == limit else None})

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a task; the answer says whether it is over now, will be, or ended otherwise before."""
        runtime, task_id, user = self._app.runtime, _id(request.match_info["task_id"]), request[USER]
        done = await runtime.tasks.cancel(task_id, user)
        row = await runtime.tasks.get(task_id, user)
        if done.outcome == "missing" or row is None:
            raise _missing(task_id)
        if done.outcome == "ended" and done.state is not State.CANCELLED:
            raise Conflict(
                f"{task_id} has {_WORDS.get(done.state, 'ended')} already: nothing is left to cancel",
                task_id=task_id,
                status=done.state,
            )
        message = {
            "cancelled": "cancelled: it was not being drawn",
            "cancelling": "it is being drawn, stops between two steps, and will end as cancelled",
        }.get(done.outcome, "cancelled before")
        return ok({**state(row), "outcome": "cancelled" if done.outcome == "ended" else done.outcome}, message)


_WORDS = {State.SUCCEEDED: "succeeded", State.FAILED: "failed", State.EXPIRED: "expired"}


async def show(app: Any, task_id: str, user: str) -> dict[str, Any]:
    """Everything about a task of ``user``.

    Raises:
        NotFound: there is no such task of theirs.
    """
    runtime = app.runtime
    row = await runtime.tasks.get(_id(task_id), user)
    if row is None:
        raise _missing(task_id)
    images = (await runtime.tasks.images([task_id]))[task_id] if row.state is State.SUCCEEDED else []
    position = await runtime.tasks.position(row) if row.state is State.QUEUED else None
    sent = None
    if row.callback_url is not None and row.ended_at is not None:
        sent = await runtime.delivery.callback_state(row.id, row.ended_at)
    shown = whole(app, row, await pictures(runtime.storage, images), position=position)
    return {**shown, "callback": callback(row, sent)}


def _id(task_id: str) -> str:
    if len(task_id) > MAX_ID or not PLAIN.match(task_id):
        raise _missing(task_id)
    return task_id


def _missing(task_id: str) -> NotFound:
    return NotFound(f"there is no task {task_id[:MAX_ID]}", task_id=task_id[:MAX_ID])


def _state(name: str | None) -> State | None:
    if name is None:
        return None
    try:
        return State(name)
    except ValueError as error:
        raise InvalidRequest(f"status must be one of {', '.join(State)}, not {name[:40]!r}", field="status") from error


def _limit(text: str) -> int:
    if len(text) > 6 or not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidRequest(f"limit must be 1 to {MAX_PAGE}, not {text[:20]!r}", field="limit")
    return int(text)
