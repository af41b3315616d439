"""Live progress of a task as server-sent events, read from the row.

All streams of this process share one query every half second. The id of an event is the row's version, so a client
that comes back with ``Last-Event-ID`` goes on where it was, here or at another process. The form follows the HTML
standard, section 9.2 (server-sent events).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
from aiohttp import web

from streamapp.db import ENDED, Glimpse, State
from streamapp.errors import NotFound, Overloaded, Unavailable
from streamapp.telemetry import get_logger
from web.answers import API
from web.auth import USER
from web.task_json import percent
from web.tasks import show

log = get_logger(__name__)
INTERVAL = 0.5
#: Proxies close what is silent for long, in seconds.
HEARTBEAT = 15.0
#: Streams of one process; each watched task is a parameter of the query.
MAX_STREAMS = 10_000
PAGE = 5_000


class Stream:
    """One open stream: the newest state of its task, nothing older, so that a slow client costs nothing."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.seen: Glimpse | None = None
        self.gone = False

    def show(self, glimpse: Glimpse | None) -> None:
        """Take over a state unless a newer one is known; ``None`` when the task has disappeared."""
        if glimpse is None:
            self.gone = True
            self.changed.set()
        elif self.seen is None or glimpse.version > self.seen.version:
            self.seen = glimpse
            self.changed.set()


class Hub:
    """Asks for all watched tasks at once, only while there are any."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._streams: dict[str, set[Stream]] = defaultdict(set)
        self._count = 0
        self._loop: asyncio.Task[None] | None = None

    def open(self, task_id: str) -> Stream:
        """Start to watch a task.

        Raises:
            Overloaded: this process has as many streams as it serves.
        """
        if self._count >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} streams are open here: ask for the task instead", retry_after=5)
        stream = Stream()
        self._streams[task_id].add(stream)
        self._count += 1
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._watch(), name="events")
        return stream

    def close(self, task_id: str, stream: Stream) -> None:
        """Stop to watch."""
        self._streams[task_id].discard(stream)
        self._count -= 1
        if not self._streams[task_id]:
            del self._streams[task_id]

    async def _watch(self) -> None:
        while self._streams and not self._app.closing.is_set():
            ids = sorted(self._streams)
            try:
                for first in range(0, len(ids), PAGE):
                    some = ids[first : first + PAGE]
                    found = await self._app.runtime.tasks.watch(some)
                    for task_id in some:
                        for stream in self._streams.get(task_id, ()):
                            stream.show(found.get(task_id))
            except Unavailable:
                pass  # the heartbeats go on, and so does the stream when the database is back
            except Exception:  # supervised: without this loop every open stream would be silent for ever
                log.exception("watching tasks failed", action="watch_failed")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._app.closing.wait(), INTERVAL)
        for streams in self._streams.values():
            for stream in streams:
                stream.changed.set()


def attach(app: Any) -> None:
    """Add the route."""
    hub = Hub(app)

    async def events(request: web.Request) -> web.StreamResponse:
        task_id, user = request.match_info["task_id"], request[USER]
        row = await show(app, task_id, user)
        last = request.headers.get("Last-Event-ID", "").strip()
        if last == str(row["version"]) and row["status"] in ENDED:
            # What tells a browser not to come back.
            return web.Response(status=204)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                "X-Content-Type-Options": "nosniff",
            }
        )
        stream = hub.open(task_id)
        stream.show(_first(row))
        try:
            await response.prepare(request)
            with suppress(ConnectionResetError, NotFound):
                await _tell(app, response, stream, task_id, user, last)
        finally:
            hub.close(task_id, stream)
        return response

    app.web.web_app.router.add_get(f"{API}/image/task/{{task_id}}/events", events)


def _first(row: Mapping[str, Any]) -> Glimpse:
    """The state of the moment, told without waiting for the next question."""
    state, progress = State(row["status"]), row["progress"] / 100
    return Glimpse(row["task_id"], state, progress, row["version"], row["cancel_requested"])


async def _tell(app: Any, response: web.StreamResponse, stream: Stream, task_id: str, user: str, last: str) -> None:
    """Write changes until the task has ended, has gone, or this process stops."""
    await response.write(b"retry: 1000\n\n")
    while True:
        try:
            await asyncio.wait_for(stream.changed.wait(), HEARTBEAT)
        except TimeoutError:
            await response.write(b": still here\n\n")
            continue
        stream.changed.clear()
        glimpse = stream.seen
        if stream.gone or glimpse is None or app.closing.is_set():
            return
        if glimpse.state in ENDED:
            task = await _ended(app, task_id, user)
            if task is None:
                return
            await response.write(event(task["version"], task))
            return
        if str(glimpse.version) != last:
            await response.write(event(glimpse.version, of(glimpse)))
        last = ""


async def _ended(app: Any, task_id: str, user: str) -> dict[str, Any] | None:
    """The whole ended task; waits out a database that is away for a moment."""
    while not app.closing.is_set():
        with suppress(Unavailable):
            return await show(app, task_id, user)
        await asyncio.sleep(INTERVAL)
    return None


def of(glimpse: Glimpse) -> dict[str, Any]:
    """What an event says while the task goes on."""
    return {
        "task_id": glimpse.id,
        "status": glimpse.state.value,
        "progress": percent(glimpse.state, glimpse.progress),
        "version": glimpse.version,
        "cancel_requested": glimpse.cancel_requested,
    }


def event(version: int, data: dict[str, Any]) -> bytes:
    """One event in the wire's form."""
    return b"id: %d\nevent: task\ndata: %s\n\n" % (version, orjson.dumps(data))
