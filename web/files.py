"""Pictures of a local storage by signed address: whole or in ranges (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

from aiohttp import web

from streamapp.errors import AppError, InvalidRequest, NotFound
from streamapp.storage import LocalStorage, ObjectInfo, checked_key
from web.errors import Forbidden, of_error

ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z", re.ASCII)
#: Shown by a browser; anything else is downloaded, so that a stored page cannot run here.
SHOWN = ("image/png", "image/jpeg", "image/webp", "image/avif", "video/")


class BadRange(AppError):
    """The range lies behind the end."""

    code = "range_not_satisfiable"
    status = 416


def attach(app: Any) -> None:
    """Add the route; with S3 addresses lead straight there, and here is nothing."""

    async def read(request: web.Request) -> web.StreamResponse:
        storage = app.runtime.storage
        try:
            key = checked_key(request.match_info["key"])
        except InvalidRequest as error:
            raise NotFound("there is no such file") from error
        if not isinstance(storage, LocalStorage):
            raise NotFound("files are served by the object storage itself: use the addresses of the API")
        _verify(storage, key, request)
        info = await storage.head(key)
        if info is None:
            raise NotFound("there is no such file")
        return await answer(request, storage, key, info)

    # aiohttp adds HEAD, which gets the same headers and no body.
    app.web.web_app.router.add_get("/files/{key:.+}", read)


def _verify(storage: LocalStorage, key: str, request: web.Request) -> None:
    query = request.query
    if not storage.verify(key, query.get("exp", ""), query.get("sig", ""), query.get("name")):
        raise Forbidden("this address is not signed by this service, or no longer valid: ask for the task again")


async def answer(request: web.Request, storage: LocalStorage, key: str, info: ObjectInfo) -> web.StreamResponse:
    """The object, a part of it, or that the client has it already."""
    headers = _headers(request, info)
    if _unchanged(request, info):
        return web.Response(status=304, headers=headers)
    start, end, status = 0, info.size, 200
    try:
        wanted = _range(request, info)
    except BadRange as error:
        refused = of_error(error)
        refused.headers["Content-Range"] = f"bytes */{info.size}"
        return refused
    if wanted is not None:
        start, end = wanted
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{info.size}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_type = info.content_type
    response.content_length = end - start
    await response.prepare(request)
    if request.method != "HEAD":
        async for chunk in storage.read(key, start, end):
            await response.write(chunk)
    await response.write_eof()
    return response


def _headers(request: web.Request, info: ObjectInfo) -> dict[str, str]:
    name = request.query.get("name")
    shown = info.content_type.startswith(SHOWN)
    headers = {
        "ETag": info.etag,
        "Last-Modified": format_datetime(datetime.fromtimestamp(info.modified_ms // 1000, UTC), usegmt=True),
        "Accept-Ranges": "bytes",
        # The address is the secret: only its bearer's own browser may keep what is behind it.
        "Cache-Control": "private, max-age=3600",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if name or not shown:
        headers["Content-Disposition"] = (
            f"attachment; filename*=UTF-8''{quote(name, safe='')}" if name else "attachment"
        )
    return headers


def _unchanged(request: web.Request, info: ObjectInfo) -> bool:
    tags = request.headers.get("If-None-Match")
    if tags is not None:
        return tags.strip() == "*" or info.etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))
    since = request.if_modified_since
    return since is not None and info.modified_ms // 1000 <= since.timestamp()


def _range(request: web.Request, info: ObjectInfo) -> tuple[int, int] | None:
    """First byte and the one behind the last; ``None`` for everything.

    What is not understood, several ranges, or a changed object (``If-Range``) give everything, as the RFC allows.

    Raises:
        BadRange: the range lies behind the end.
    """
    match = ONE_RANGE.match(request.headers.get("Range", "").replace(" ", ""))
    if match is None or match.group(1, 2) == ("", ""):
        return None
    if request.headers.get("If-Range", info.etag) != info.etag:
        return None
    first, last = match[1], match[2]
    if first and last and int(last) < int(first):
        return None
    if not first:
        start, end = max(0, info.size - int(last)), info.size
    else:
        start, end = int(first), min(info.size, int(last) + 1) if last else info.size
    if start >= info.size or start >= end:
        raise BadRange(f"the file has {info.size} bytes", size=info.size)
    return start, end
