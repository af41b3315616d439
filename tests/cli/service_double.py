"""A service that answers like the public API from a script; what it was sent is kept."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

PIXEL = b"\x89PNG\r\n\x1a\nnot really a picture"


@dataclass
class Double:
    """``states`` are what successive reads of the task show; the last one stays."""

    states: deque[dict[str, Any]] = field(default_factory=deque)
    refusals: deque[tuple[int, dict[str, str], dict[str, Any]]] = field(default_factory=deque)
    events: bool = True
    submitted: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> web.Application:
        """The routes that the client uses."""
        app = web.Application()
        app.router.add_post("/api/v1/image/generate", self.generate)
        app.router.add_get("/api/v1/image/task/{id}", self.task)
        app.router.add_delete("/api/v1/image/task/{id}", self.task)
        app.router.add_get("/api/v1/image/task/{id}/events", self.stream)
        app.router.add_get("/files/{name}", self.file)
        return app

    def answer(self, data: dict[str, Any], status: int = 200) -> web.Response:
        return web.json_response(
            {"code": 0, "message": "ok", "data": data}, status=status, dumps=lambda v: orjson.dumps(v).decode()
        )

    async def generate(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        self.submitted.append(orjson.loads(await request.read()))
        if self.refusals:
            status, headers, body = self.refusals.popleft()
            return web.json_response(body, status=status, headers=headers)
        return self.answer({"task_id": "img-1", "status": "queued", "progress": 0}, 200)

    async def task(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != "img-1":
            return web.json_response({"code": "not_found", "message": "no task of that name"}, status=404)
        state = self.states.popleft() if len(self.states) > 1 else self.states[0]
        return self.answer({"task_id": "img-1", **state})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if not self.events:
            return web.json_response({"code": "not_found", "message": "no events here"}, status=404)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            state = self.states.popleft() if len(self.states) > 1 else self.states[0]
            body = orjson.dumps({"task_id": "img-1", **state}).decode()
            await response.write(f"id: 1\nevent: task\ndata: {body}\n\n".encode())
            if state["status"] == "succeeded":
                return response

    async def file(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        return web.Response(body=PIXEL, content_type="image/png")
