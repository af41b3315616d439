"""The pages for people: the status page at ``/``, the API reference at ``/docs``, and what both load.

Plain files from ``web/static``, read once. Everything a page loads lives below ``/static/<version>/``, where the
version is the digest of all files: modules import each other by relative address, so one changed file gives every
one of them a new address, and browsers may keep each for good.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from aiohttp import web
from aiohttp.web import ETag
from yarl import URL

from streamapp.models.styles import STYLES
from streamapp.settings import Settings

STATIC = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGES = {"/": "index.html", "/docs": "docs.html"}
FOR_GOOD = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it is sent."""

    body: bytes
    content_type: str
    digest: str

    @classmethod
    def of(cls, body: bytes, content_type: str) -> Asset:
        """With the digest that names this content to caches."""
        return cls(body, content_type, hashlib.sha256(body).hexdigest()[:32])


def attach(app: Any) -> None:
    """Add ``/``, ``/docs`` and ``/static/…``."""
    assets = {path.name: Asset.of(path.read_bytes(), TYPES[path.suffix]) for path in _files()}
    version = version_of(assets)
    safety = {
        "Content-Security-Policy": content_security_policy(app.settings),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def static(request: web.Request) -> web.StreamResponse:
        asset = assets.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        # A page of another release, from before a restart: it gets what there is and keeps none of it.
        caching = FOR_GOOD if request.match_info["version"] == version else ASK_AGAIN
        return answer(request, asset, {**safety, "Cache-Control": caching})

    router = app.web.web_app.router
    router.add_get("/static/{version}/{name}", static)
    for address, name in PAGES.items():
        asset = Asset.of(fill((STATIC / name).read_text("utf-8"), version), "text/html")
        router.add_get(address, _page(asset, {**safety, "Cache-Control": ASK_AGAIN}))


def _page(asset: Asset, headers: dict[str, str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def page(request: web.Request) -> web.StreamResponse:
        return answer(request, asset, headers)

    return page


def answer(request: web.Request, asset: Asset, headers: dict[str, str]) -> web.Response:
    """The file, or 304 when the browser has this very content (RFC 9110, section 13.1.2)."""
    known = request.if_none_match or ()
    if any(tag.value in {asset.digest, "*"} for tag in known):
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(
            body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers
        )
    response.etag = ETag(asset.digest)
    return response


def fill(template: str, version: str) -> bytes:
    """A page with the address of what it loads and the styles a request may name."""
    styles = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in STYLES)
    return Template(template).substitute(static=f"/static/{version}", styles=styles).encode()


def version_of(assets: dict[str, Asset]) -> str:
    """One short digest of all files."""
    names = "".join(f"{name}:{asset.digest}\n" for name, asset in sorted(assets.items()))
    return hashlib.sha256(names.encode()).hexdigest()[:12]


def content_security_policy(settings: Settings) -> str:
    """Only our own files run and are styled; pictures may also come from where the storage's addresses point."""
    pictures = " ".join(["'self'", *picture_origins(settings)])
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {pictures}; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def picture_origins(settings: Settings) -> list[str]:
    """Other origins that addresses of pictures can have."""
    origins = [settings.public_url] if settings.public_url else []
    if settings.storage_url.startswith("s3://"):
        origins.append("https:")
        custom = settings.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if custom:
            origins.append(custom)
    return [origin if origin == "https:" else str(URL(origin).origin()) for origin in origins]


def _files() -> list[Path]:
    return sorted(path for path in STATIC.iterdir() if path.suffix in TYPES)
