"""The real views, middlewares and ports over SQLite and a folder; no broker, so rows stay where a test puts them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from streamapp.app import StreamApp, create_app
from streamapp.db import End, ImageRow, State, TaskRow
from streamapp.records import TaskEvent
from streamapp.runtime import Runtime, close_runtime, open_runtime
from streamapp.settings import Settings
from streamapp.storage import image_key
from tests.worker.fake_drawing import FakeDrawing

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


class Answer:
    """Status, headers and JSON of an answer."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def data(self) -> Any:
        assert self.status == 200, self.body
        assert self.json["code"] == 0
        return self.json["data"]

    def refused(self, status: int, code: str, *, field: str | None = None) -> str:
        """The message of a refusal, which has the form every refusal has."""
        assert (self.status, self.json["code"]) == (status, code), self.body
        assert field is None or self.json["field"] == field, self.body
        message: str = self.json["message"]
        assert len(message) > 10
        return message


class Api:
    """A client of one process, and what a test does behind its back."""

    def __init__(self, app: StreamApp, session: aiohttp.ClientSession) -> None:
        self.app, self.session = app, session
        self.url = f"http://127.0.0.1:{app.port}"

    @property
    def runtime(self) -> Runtime:
        return self.app.runtime

    async def call(self, method: str, path: str, body: Any = None, **given: Any) -> Answer:
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Type": "application/json", **given.pop("headers", {})}
        async with self.session.request(method, self.url + path, data=data, headers=headers, **given) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **given: Any) -> Answer:
        return await self.call("GET", path, **given)

    async def generate(self, body: Any = None, **given: Any) -> Answer:
        return await self.call(
            "POST", "/api/v1/image/generate", {"text": "a red apple"} if body is None else body, **given
        )

    async def submitted(self, **body: Any) -> str:
        """Submit a task; its id."""
        task_id: str = (await self.generate({"text": "a red apple", **body})).data["task_id"]
        return task_id

    async def claimed(self, task_id: str) -> TaskRow:
        """As if a worker had begun to draw."""
        [row] = await self.runtime.claims.claim([task_id], "w1", 15)
        return row

    async def ended(self, task_id: str, state: State = State.SUCCEEDED, **given: Any) -> TaskRow:
        """As if a worker had drawn it, its picture in the storage."""
        row = await self.claimed(task_id)
        images = []
        if state is State.SUCCEEDED:
            key = image_key(task_id, 0)
            await self.runtime.storage.put(key, PNG, "image/png")
            images = [ImageRow(task_id, 0, key, "image/png", len(PNG), 128, 128, row.params.seed, "ab" * 32, {})]
        event = TaskEvent(
            event_id="?", task_id=task_id, event=state.value, at=0, user_id=row.user_id, family=row.family,
            model=row.model, shape="128x128",
        )  # fmt: skip
        assert row.claim_token is not None
        end = End(task_id, row.claim_token, state, images=images, event=event, **given)
        assert (await self.runtime.claims.finish([end]))[task_id] is state
        return row


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves for the length of an ``async with``; keywords are settings."""

    @asynccontextmanager
    async def run(**given: Any) -> AsyncIterator[Api]:
        monkeypatch.setattr("streamapp.worker.engine.open_drawing", lambda _: FakeDrawing())
        app = create_app(Settings(**{"data_dir": tmp_path, "port": 0, "worker_id": "up-1", **given}), "up")
        app.runtime = await open_runtime(app)
        await app.web.start()
        try:
            async with aiohttp.ClientSession() as session:
                yield Api(app, session)
        finally:
            app.closing.set()
            await app.web.stop()
            await close_runtime(app.runtime)

    return run


@pytest.fixture
async def api(serve: Serve) -> AsyncIterator[Api]:
    async with serve() as api:
        yield api


@pytest.fixture
def broken(api: Api, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the database away."""
    from streamapp.errors import Unavailable

    async def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("the database does not answer", retry_after=5)

    def take() -> None:
        for name in ("read", "write", "ping", "now"):
            monkeypatch.setattr(type(api.runtime.database), name, away)

    return take


Broken = Callable[[], None]
Wait = Callable[[], Awaitable[bool]]
