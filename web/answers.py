"""The form of every JSON answer, and of the values in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

API = "/api/v1"


def ok(data: Mapping[str, Any], message: str = "ok") -> web.Response:
    """``{code: 0, message, data}``."""
    return raw({"code": 0, "message": message, "data": data})


def raw(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer as it stands; nothing here may be kept by a cache on the way."""
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        content_type="application/json",
        charset="utf-8",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def iso(ms: int | None) -> str | None:
    """Milliseconds since 1970 as ``2026-11-23T08:30:00.125Z``."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
