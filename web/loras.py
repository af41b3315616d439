"""LoRAs and ControlNets alone: the lists, and uploads of LoRAs under both of their addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from streamapp.db import LoraRow
from streamapp.models.steering import is_controlnet
from web.answers import API, ok
from web.models import is_lora, of_row
from web.uploads import upload


def attach(app: Any) -> None:
    """Add the routes."""

    async def loras(_: web.Request) -> web.Response:
        return ok({"loras": await _served(app, is_lora)})

    async def controlnets(_: web.Request) -> web.Response:
        return ok({"controlnets": await _served(app, is_controlnet)})

    async def add(request: web.Request) -> web.Response:
        return await upload(app, request)

    router = app.web.web_app.router
    router.add_get(f"{API}/loras", loras)
    router.add_get(f"{API}/controlnets", controlnets)
    router.add_post(f"{API}/loras", add)
    router.add_post(f"{API}/lora/upload", add)


async def _served(app: Any, of_kind: Callable[[LoraRow], bool]) -> list[dict[str, Any]]:
    """Those of a kind that fit the families that are served."""
    rows = [row for row in await app.runtime.shelf.loras() if row.family in app.settings.families]
    return [of_row(row) for row in rows if of_kind(row)]
