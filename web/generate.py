"""``POST /api/v1/image/generate``: accept a task. The answer waits for the row, never for the broker."""

from __future__ import annotations

import re
from typing import Any

import orjson
from aiohttp import web

from streamapp.errors import InvalidRequest, TooLarge, Unavailable
from streamapp.submit import submit
from web.answers import API, ok
from web.auth import USER
from web.bodies import parse, submission
from web.task_json import accepted

#: Fields that may hold a whole picture, and what may stand before its base64.
PICTURES = ("init_image", "mask")
DATA_HEAD = 200
#: How deep lists and objects of a body may lie in each other; a recipe has four levels.
DEEPEST = 32
TRACE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")


def attach(app: Any) -> None:
    """Add the route."""

    async def generate(request: web.Request) -> web.Response:
        if app.closing.is_set():
            raise Unavailable("this process is stopping: send it again, and another one answers", retry_after=2)
        body = await _with_pictures(app, request)
        trace = request.headers.get("traceparent", "")
        asked = submission(
            parse(body),
            body,
            key=request.headers.get("Idempotency-Key"),
            trace=trace if TRACE.match(trace) else None,
        )
        done = await submit(app.runtime, asked, request[USER])
        return ok(accepted(app, done), "accepted" if done.created else "accepted before")

    app.web.web_app.router.add_post(f"{API}/image/generate", generate)


async def _with_pictures(app: Any, request: web.Request) -> dict[str, Any]:
    """The body of a submit: pictures in it are no part of what ``max_request_bytes`` limits.

    All of them together may be as large as two of the largest: more are sent ahead, and named.

    Raises:
        InvalidRequest: see :func:`read_object`.
        TooLarge: what is left without them is larger.
    """
    settings = app.settings
    most = settings.max_request_bytes + 2 * (settings.max_input_bytes * 4 // 3 + DATA_HEAD)
    larger = request.clone(client_max_size=most)
    size, limit = len(await larger.read()), settings.max_request_bytes
    refusal = TooLarge(f"the request, without its pictures, is larger than {limit} bytes, the limit here", limit=limit)
    try:
        body = await read_object(larger)
    except InvalidRequest as error:
        if size > limit:
            raise refusal from error
        raise
    params = body.get("params")
    held = [params.get(name) for name in PICTURES] if isinstance(params, dict) else []
    controls = params.get("controls") if isinstance(params, dict) else None
    if isinstance(controls, list):
        held += [control.get("image") for control in controls if isinstance(control, dict)]
    if size - sum(len(text) for text in held if isinstance(text, str)) > limit:
        raise refusal
    return body


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body of a request as a JSON object.

    Raises:
        InvalidRequest: it is something else.
        web.HTTPRequestEntityTooLarge: it is larger than the settings allow.
    """
    data = await request.read()
    if not data:
        raise InvalidRequest('the body is empty: send JSON, such as {"text": "a cute panda"}')
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest('the body must be a JSON object, such as {"text": "a cute panda"}')
    if deeper_than(body, DEEPEST):
        raise InvalidRequest(f"lists and objects of the body lie more than {DEEPEST} deep in each other")
    return body


def deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects lie deeper in each other; what reads JSON takes more levels than what writes it."""
    inner = [value]
    for _ in range(levels + 1):
        inner = [
            item
            for outer in inner
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(inner)
