"""Pictures to start from, sent ahead: kept once, named by ``sha256:…`` in as many requests as one likes."""

from __future__ import annotations

from typing import Any

from aiohttp import BodyPartReader, web

from streamapp.errors import InvalidRequest
from streamapp.storage import input_key
from streamapp.submit.inputs import keep, too_large
from web.answers import API, ok
from web.task_json import URL_SECONDS
from web.uploads import CHUNK, soon

FIELD = "file"


def attach(app: Any) -> None:
    """Add the route."""

    async def add(request: web.Request) -> web.Response:
        """A picture as the body itself, or as the part ``file`` of a form."""
        limit = app.settings.max_input_bytes
        data = await (_part(request, limit) if request.content_type == "multipart/form-data" else _body(request, limit))
        kept = await keep(app.runtime, data, FIELD)
        address = await app.runtime.storage.url(input_key(kept.ref.digest), expires_s=URL_SECONDS)
        shown = {
            "id": kept.ref.name,
            "width": kept.ref.width,
            "height": kept.ref.height,
            "bytes": kept.bytes,
            "content_type": kept.content_type,
            "url": address,
        }
        return ok(shown, "kept")

    app.web.web_app.router.add_post(f"{API}/image/inputs", add)


async def _body(request: web.Request, limit: int) -> bytes:
    data = bytearray()
    while chunk := await soon(request.content.read(CHUNK)):
        data += chunk
        if len(data) > limit:
            raise too_large(FIELD, limit)
    if not data:
        raise InvalidRequest("the body is empty: send the picture itself, or a form with the part `file`", field=FIELD)
    return bytes(data)


async def _part(request: web.Request, limit: int) -> bytes:
    reader = await soon(request.multipart())
    data: bytearray | None = None
    while (part := await soon(reader.next())) is not None:
        if not isinstance(part, BodyPartReader) or part.name != FIELD or data is not None:
            raise InvalidRequest("send one picture, as the part `file`", field=FIELD)
        data = bytearray()
        while chunk := await soon(part.read_chunk(CHUNK)):
            data += chunk
            if len(data) > limit:
                raise too_large(FIELD, limit)
    if not data:
        raise InvalidRequest("file is missing: send the picture as the part `file`", field=FIELD)
    return bytes(data)
