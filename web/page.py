"""The pages for people: fixed files of our own, nothing from anywhere else, and a policy that keeps it so."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: Pictures may come from an object storage, whose address only the API knows; scripts and styles are ours.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' https: http: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Handler = Callable[[web.Request], Awaitable[web.Response]]


def attach(app: Any) -> None:
    """Add ``/`` and what it consists of; each file is listed, so nothing else can be asked for."""
    router = app.web.web_app.router
    router.add_get("/", page("index.html"))
    for name in sorted(path.name for path in STATIC.iterdir() if path.suffix in {".css", ".js", ".svg"}):
        router.add_get(f"/static/{name}", page(name))


def page(name: str) -> Handler:
    """A handler that answers with a file of ``static/``, read once."""
    path = STATIC / name
    body, kind = path.read_bytes(), TYPES[path.suffix]
    headers = {
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:20]}"',
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
    }

    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    return answer
