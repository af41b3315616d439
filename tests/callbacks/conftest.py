"""A sender over either database, and a receiver on loopback that does as a test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from sqlalchemy import select, update

from streamapp.callbacks import Callbacks
from streamapp.db import Callback, CallbackState, Database, Delivery, Tasks
from streamapp.db.schema import callbacks
from streamapp.guarded import GuardedClient
from streamapp.settings import Settings
from tests.db.conftest import claims, database, delivery, registry, tasks, upgraded_file, upgraded_server
from tests.db.support import new

__all__ = ["claims", "database", "delivery", "registry", "tasks", "upgraded_file", "upgraded_server"]

KEY = b"k" * 32
#: What the injected clock says, in milliseconds.
NOW = 1_614_265_330_500


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers ``answers[path]`` (one after the other, the last one for ever; 200 without), and notes what came."""

    def __init__(self) -> None:
        self.got: list[Received] = []
        self.answers: dict[str, list[int | dict[str, Any]]] = {}
        self.paused = asyncio.Event()
        self.paused.set()
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self.server = TestServer(app, host="127.0.0.1")

    async def _answer(self, request: web.Request) -> web.Response:
        headers = {key.lower(): value for key, value in request.headers.items()}
        self.got.append(Received(request.path, headers, await request.read()))
        if request.path.startswith("/slow"):
            await self.paused.wait()
        wanted = self.answers.get(request.path, [200])
        answer = wanted.pop(0) if len(wanted) > 1 else wanted[0]
        return web.Response(status=answer) if isinstance(answer, int) else web.Response(**answer)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server.port}{path}"

    def ids(self) -> list[str]:
        return [item.headers["webhook-id"] for item in self.got]


async def until(condition: Callable[[], bool | Awaitable[bool]], within: float = 10.0) -> None:
    """Wait for a condition, with a bound."""
    async with asyncio.timeout(within):
        while True:
            answer = condition()
            if answer is True or (not isinstance(answer, bool) and await answer):
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.server.start_server()
    yield receiver
    receiver.paused.set()
    await receiver.server.close()


async def show(call: Callback) -> bytes:
    """A body that says whose it is; the real one is tested where the API is."""
    return b'{"task":"' + call.task_id.encode() + b'"}'


class Desk:
    """Tasks with webhooks that are due, and senders for them."""

    def __init__(self, database: Database, tasks: Tasks, delivery: Delivery, folder: Path) -> None:
        self.database, self.tasks, self.delivery, self.folder = database, tasks, delivery, folder
        self.stack = AsyncExitStack()
        self.counts: Counter[str] = Counter()

    async def due(self, task_id: str, url: str) -> str:
        """A cancelled task whose webhook is due; the id of the event."""
        await self.tasks.insert(new(task_id, callback_url=url))
        await self.tasks.cancel(task_id)
        return f"{task_id}:2"

    async def sender(self, *, private: bool = True, render: Any = show, keys: Any = (KEY,), **given: Any) -> Callbacks:
        settings = Settings(data_dir=self.folder, **{"webhook_timeout": 5.0, **given})
        client = GuardedClient(allow_private=private, timeout=settings.webhook_timeout)
        await self.stack.enter_async_context(client)
        return Callbacks(
            self.delivery, client, render, keys, settings,
            now=lambda: NOW, count=self.counts, vary=lambda low, high: (low + high) / 2,
        )  # fmt: skip

    async def once(self, sender: Callbacks) -> int:
        """Everything that is due now, to its outcome; how many."""
        sent = await sender.turn()
        await sender.idle()
        return sent

    async def state(self, event_id: str) -> CallbackState:
        c = callbacks.c
        statement = select(c.task_id, c.created_at).where(c.event_id == event_id)
        [row] = await self.database.read(lambda connection: connection.execute(statement).all())
        state = await self.delivery.callback_state(row[0], row[1])
        assert state is not None
        return state

    async def pass_time(self, seconds: float) -> None:
        """Let time pass for every webhook that waits."""
        c = callbacks.c
        values = {c.next_at: c.next_at - int(seconds * 1000)}
        statement = update(callbacks).where(c.next_at.is_not(None)).values(values)
        await self.database.write(lambda connection: connection.execute(statement).rowcount)

    async def rows(self) -> list[tuple[str, str]]:
        """Event id and URL of every webhook there is."""
        statement = select(callbacks.c.event_id, callbacks.c.url).order_by(callbacks.c.event_id)
        found = await self.database.read(lambda connection: connection.execute(statement).all())
        return [(row[0], row[1]) for row in found]


@pytest.fixture
async def desk(database: Database, tasks: Tasks, delivery: Delivery, tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(database, tasks, delivery, tmp_path)
    async with desk.stack:
        yield desk
