"""LoRAs alone: the list, and uploads under both of their addresses."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from streamapp.models.learned import is_embedding
from web.answers import API, ok
from web.models import of_lora
from web.uploads import upload


def attach(app: Any) -> None:
    """Add the routes."""

    async def loras(_: web.Request) -> web.Response:
        rows = [
            row
            for row in await app.runtime.shelf.loras()
            if row.family in app.settings.families and not is_embedding(row)
        ]
        return ok({"loras": [of_lora(row) for row in rows]})

    async def add(request: web.Request) -> web.Response:
        return await upload(app, request)

    router = app.web.web_app.router
    router.add_get(f"{API}/loras", loras)
    router.add_post(f"{API}/loras", add)
    router.add_post(f"{API}/lora/upload", add)
