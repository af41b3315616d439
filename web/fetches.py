"""Fetching models and LoRAs from Civitai and the Hub on request, and how far that is."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from streamapp.errors import InvalidRequest, NotFound
from streamapp.models.cache import kind_of
from streamapp.models.catalogue import NAME
from streamapp.models.fetching import Fetch
from streamapp.telemetry import get_logger
from web.answers import API, iso, ok, raw
from web.auth import USER
from web.generate import read_object
from web.models import KINDS, of_row, operators_only

log = get_logger(__name__)
MAX_REFERENCE = 500
FETCHES = f"{API}/fetches"


def attach(app: Any) -> None:
    """Add the routes; before those of one model, whose name is never ``pull``."""

    async def pull(request: web.Request) -> web.Response:
        operators_only(app, request, "fetching models")
        reference, name = _asked(await read_object(request))
        fetch = await app.runtime.fetches.start(reference, name)
        log.info("fetch asked for", action="fetch_asked", reference=reference, fetch=fetch.id, user=request[USER])
        return raw({"code": 0, "message": "fetching", "data": fetch_json(fetch)}, 202)

    async def many(_: web.Request) -> web.Response:
        return ok({"fetches": [fetch_json(fetch) for fetch in app.runtime.fetches.all()]})

    async def one(request: web.Request) -> web.Response:
        fetch_id = request.match_info["fetch_id"][:64]
        fetch = app.runtime.fetches.get(fetch_id)
        if fetch is None:
            raise NotFound(f"this process knows no fetch {fetch_id}", id=fetch_id)
        return ok(fetch_json(fetch))

    router = app.web.web_app.router
    for kind in KINDS:
        router.add_post(f"{API}/{kind}s/pull", pull)
    router.add_get(FETCHES, many)
    router.add_get(f"{FETCHES}/{{fetch_id}}", one)


def _asked(body: dict[str, Any]) -> tuple[str, str | None]:
    if unknown := sorted(set(body) - {"reference", "name"}):
        raise InvalidRequest(f"{unknown[0][:60]} is not a field here; known: reference, name")
    reference, name = body.get("reference"), body.get("name")
    if not isinstance(reference, str) or not 1 <= len(reference.strip()) <= MAX_REFERENCE:
        raise InvalidRequest(
            "reference is missing or too long: civitai:MODEL@VERSION, an address of Civitai or the Hub, OWNER/NAME, an "
            "AIR or a SHA-256",
            field="reference",
        )
    if name is not None and not (isinstance(name, str) and NAME.match(name)):
        raise InvalidRequest("name must be letters, digits, blanks, dots, dashes or underscores", field="name")
    return reference, name


def fetch_json(fetch: Fetch) -> dict[str, Any]:
    """A fetch as the API shows it."""
    row = fetch.row
    return {
        "id": fetch.id,
        "reference": fetch.reference,
        "name": fetch.name if row is None else row.name,
        "state": fetch.state,
        "bytes": fetch.bytes,
        "total": fetch.total,
        "error": fetch.error,
        "kind": None if row is None else kind_of(row),
        "row": None if row is None else of_row(row),
        "started_at": iso(fetch.started_at),
        "ended_at": iso(fetch.ended_at),
        "query_url": f"{FETCHES}/{fetch.id}",
    }
