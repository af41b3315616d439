"""The pages for people: status at ``/``, the API reference at ``/docs``, and what both load.

Plain files of ``web/static``, read once. What a page loads lives below ``/static/VERSION/``, where the version is the
digest of all those files: modules import each other by relative address, so one changed file gives all of them a new
address, and browsers may keep each for good.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from aiohttp import web
from aiohttp.helpers import ETag
from yarl import URL

from streamapp.settings import Settings

STATIC = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGES = {"/": "index.html", "/docs": "docs.html"}
FOR_GOOD = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it is sent, and the digest that names this content to caches."""

    body: bytes
    content_type: str
    digest: str

    @classmethod
    def of(cls, body: bytes, content_type: str) -> Asset:
        """With its digest."""
        return cls(body, content_type, hashlib.sha256(body).hexdigest()[:32])


def attach(app: Any) -> None:
    """Add ``/``, ``/docs`` and ``/static/…``; each file is listed, so nothing else can be asked for."""
    assets = {
        path.name: Asset.of(path.read_bytes(), TYPES[path.suffix])
        for path in sorted(STATIC.iterdir())
        if path.suffix in TYPES
    }
    version = version_of(assets)
    safety = {
        "Content-Security-Policy": content_security_policy(app.settings),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }

    async def static(request: web.Request) -> web.StreamResponse:
        asset = assets.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        # A page that was loaded before an upgrade gets what there is now, and keeps none of it.
        caching = FOR_GOOD if request.match_info["version"] == version else ASK_AGAIN
        return answer(request, asset, {**safety, "Cache-Control": caching})

    router = app.web.web_app.router
    router.add_get("/static/{version}/{name}", static)
    for address, name in PAGES.items():
        filled = Template((STATIC / name).read_text("utf-8")).substitute(static=f"/static/{version}")
        asset = Asset.of(filled.encode(), "text/html")
        router.add_get(address, _page(asset, {**safety, "Cache-Control": ASK_AGAIN}))


def _page(asset: Asset, headers: dict[str, str]) -> Handler:
    async def page(request: web.Request) -> web.StreamResponse:
        return answer(request, asset, headers)

    return page


def answer(request: web.Request, asset: Asset, headers: dict[str, str]) -> web.Response:
    """The file, or 304 when the browser has this very content (RFC 9110, section 13.1.2)."""
    if any(tag.value in {asset.digest, "*"} for tag in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers)
    response.etag = ETag(asset.digest)
    return response


def version_of(assets: dict[str, Asset]) -> str:
    """One short digest of all files and their names."""
    names = "".join(f"{name}:{asset.digest}\n" for name, asset in sorted(assets.items()))
    return hashlib.sha256(names.encode()).hexdigest()[:12]


def content_security_policy(settings: Settings) -> str:
    """Only our own files run and are styled; pictures may also come from where the storage's addresses point."""
    pictures = " ".join(dict.fromkeys(["'self'", *picture_origins(settings)]))
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {pictures}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def picture_origins(settings: Settings) -> list[str]:
    """Other origins that addresses of pictures can have; a bucket's host at the cloud is chosen by its client."""
    origins = [str(URL(settings.public_url).origin())] if settings.public_url else []
    if settings.storage_url.startswith("s3://"):
        custom = settings.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        origins.append(str(URL(custom).origin()) if custom else "https:")
    return origins
