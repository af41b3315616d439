"""What can be drawn with: models, LoRAs, samplers, styles and families; one of them in full, and away with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import Any

from aiohttp import web

from streamapp.db import LoraRow, ModelRow
from streamapp.engine.names import AUTO, SAMPLERS, SCHEDULES
from streamapp.errors import AppError, Conflict, InvalidRequest, NotFound
from streamapp.models import quarantine
from streamapp.models.cache import EVICTED, PINNED, PULLED_FROM, Kind, kind_of, lent_paths
from streamapp.models.catalogue import delete_files, locate
from streamapp.models.families import traits_of
from streamapp.models.learned import is_embedding
from streamapp.models.referenced import PENDING
from streamapp.models.shipped import PACKAGE
from streamapp.models.steering import is_controlnet
from streamapp.models.styles import STYLES
from streamapp.telemetry import get_logger
from web.answers import API, iso, ok
from web.auth import USER
from web.dead_letters import OperatorsOnly

log = get_logger(__name__)
MAX_NAME = 200
#: Each has addresses of its own.
KINDS: tuple[Kind, ...] = ("model", "lora", "controlnet")
Handler = Callable[[web.Request], Awaitable[web.Response]]


def attach(app: Any) -> None:
    """Add the routes."""

    async def models(_: web.Request) -> web.Response:
        shelf, served = app.runtime.shelf, app.settings.families
        checkpoints = [row for row in await shelf.models() if row.family in served]
        added = [row for row in await shelf.loras() if row.family in served]
        return ok(
            {
                "models": [of_model(row) for row in checkpoints],
                "loras": [of_row(row) for row in added if is_lora(row)],
                "embeddings": [of_row(row) for row in added if is_embedding(row)],
                "controlnets": [of_row(row) for row in added if is_controlnet(row)],
                "samplers": [*SAMPLERS, AUTO],
                "schedules": [*SCHEDULES],
                "styles": [
                    {"name": style.name, "aliases": list(style.aliases), "adds": style.words}
                    for style in STYLES.values()
                ],
                "families": list(served),
            }
        )

    router = app.web.web_app.router
    router.add_get(f"{API}/models", models)
    for kind in KINDS:
        one, remove = _views(app, kind)
        router.add_get(f"{API}/{kind}s/{{name}}", one)
        router.add_delete(f"{API}/{kind}s/{{name}}", remove)


def _views(app: Any, kind: Kind) -> tuple[Handler, Handler]:
    """The handlers of one model or LoRA."""

    async def one(request: web.Request) -> web.Response:
        rows = await find_named(app, kind, request.match_info["name"])
        newest = await (app.runtime.registry.model if kind == "model" else app.runtime.registry.lora)(rows[0].name)
        if newest is None:
            raise NotFound(f"{rows[0].name} was just removed", name=rows[0].name)
        where = await asyncio.to_thread(_state, newest, app.settings)
        return ok({**_whole(newest), "state": where, "versions": [row.version for row in rows]})

    async def remove(request: web.Request) -> web.Response:
        operators_only(app, request, f"deleting {kind}s")
        if unknown := sorted(set(request.query) - {"version"}):
            raise InvalidRequest(f"{unknown[0][:60]} is not a parameter here; known: version")
        rows = await find_named(app, kind, request.match_info["name"], request.query.get("version"))
        freed = await _remove(app, kind, rows, request.query.get("version"))
        log.info("weights deleted", action="deleted", kind=kind, name=rows[0].name, bytes=freed, user=request[USER])
        return ok({"name": rows[0].name, "versions": [row.version for row in rows], "freed": freed}, "deleted")

    return one, remove


async def find_named(app: Any, kind: Kind, name: str, version: str | None = None) -> list[ModelRow | LoraRow]:
    """Every version of a name, or one.

    Raises:
        NotFound: says the nearest names.
    """
    registry = app.runtime.registry
    rows: list[ModelRow | LoraRow] = list(await (registry.models() if kind == "model" else registry.loras()))
    known = [row for row in rows if kind_of(row) == kind]
    found = [row for row in known if row.name == name and version in (None, row.version)]
    if not found:
        near = get_close_matches(name, sorted({row.name for row in known}), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        what = f"{name[:60]!r}" if version is None else f"{name[:60]!r} {version[:60]}"
        raise NotFound(f"{kind} {what} is not registered here{hint}", name=name[:MAX_NAME], known=near)
    return found


async def _remove(app: Any, kind: Kind, rows: list[ModelRow | LoraRow], version: str | None) -> int:
    """Forget the rows and delete what no other row uses; bytes freed.

    Raises:
        Conflict: they ship with the service, or tasks that have not ended use them.
    """
    runtime, name = app.runtime, rows[0].name
    if any(row.source.startswith(PACKAGE) for row in rows):
        raise Conflict(f"{name} ships with the service and stays", name=name)
    if await runtime.tasks.naming(kind, name):
        raise Conflict(f"queued or running tasks use {name}: cancel them, or wait until they have ended", name=name)
    registry = runtime.registry
    gone = await (registry.remove_model if kind == "model" else registry.remove_lora)(name, version)
    runtime.shelf.forget()
    kept: list[ModelRow | LoraRow] = [*await registry.models(), *await registry.loras()]
    used = {row.path for row in kept} | lent_paths(kept)
    freed, paths = 0, set()
    for row in gone:
        if row.path not in used and row.path not in paths:
            paths.add(row.path)
            freed += await asyncio.to_thread(delete_files, row, app.settings)
    return freed


def operators_only(app: Any, request: web.Request, what: str) -> None:
    """Refuse plain users where the service knows its users.

    Raises:
        OperatorsOnly: the key is none of an operator's.
    """
    if app.settings.api_keys and request[USER] not in app.settings.operators:
        raise OperatorsOnly(f"{what} is for operators: STREAMAPP_OPERATORS names whose keys may")


def of_row(row: ModelRow | LoraRow) -> dict[str, Any]:
    """A model or LoRA as lists show it."""
    if not isinstance(row, LoraRow):
        return of_model(row)
    if is_embedding(row):
        return of_embedding(row)
    return of_controlnet(row) if is_controlnet(row) else of_lora(row)


def is_lora(row: LoraRow) -> bool:
    """Whether a row of the LoRAs' table is one."""
    return not is_embedding(row) and not is_controlnet(row)


def of_model(row: ModelRow) -> dict[str, Any]:
    """A checkpoint with the defaults of a request that leaves things open."""
    traits = traits_of(row.family, row.traits)
    return {
        **_weights(row),
        "title": row.traits.get("title", row.name),
        "license": row.traits.get("license"),
        "native": f"{traits.native}x{traits.native}",
        "min_side": traits.min_side,
        "max_side": traits.max_side,
        "max_pixels": traits.max_pixels,
        "defaults": {"steps": traits.steps, "cfg_scale": traits.guidance, "sampler": traits.sampler},
    }


def of_lora(row: LoraRow) -> dict[str, Any]:
    """A LoRA with the words that wake it."""
    return {**_weights(row), "trigger_words": list(row.traits.get("trigger_words") or ())}


def of_embedding(row: LoraRow) -> dict[str, Any]:
    """A learned word with how much of a prompt's window it takes."""
    return {**_weights(row), "vectors": row.traits.get("vectors")}


def of_controlnet(row: LoraRow) -> dict[str, Any]:
    """A ControlNet; a union of several has so many kinds of pictures."""
    return {**_weights(row), "modes": row.traits.get("modes")}


def _weights(row: ModelRow | LoraRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": row.version,
        "family": row.family,
        "digest": row.digest,
        "size": row.size,
        "last_used_at": iso(row.last_used_at),
        "state": known_as(row),
        "quarantined": row.traits.get(quarantine.QUARANTINED),
    }


def known_as(row: ModelRow | LoraRow) -> str:
    """What the registry alone says of the files of weights."""
    if row.traits.get(PENDING):
        return "pending"
    if row.traits.get(EVICTED):
        return "evicted"
    return "registered" if quarantine.why(row) is None else "quarantined"


def _whole(row: ModelRow | LoraRow) -> dict[str, Any]:
    traits = row.traits
    return {
        **of_row(row),
        "kind": kind_of(row),
        "base_model": traits.get("base_model"),
        "trigger_words": list(traits.get("trigger_words") or ()),
        "license": traits.get("license"),
        "nsfw_level": traits.get("nsfw_level"),
        "page": traits.get("page"),
        "pulled_from": traits.get(PULLED_FROM),
        "ships": row.source.startswith(PACKAGE),
        "pinned": bool(traits.get(PINNED)),
    }


def _state(row: ModelRow | LoraRow, settings: Any) -> str:
    """Whether its files are on this machine, and may be used."""
    known = known_as(row)
    if known != "registered":
        return known
    try:
        locate(row, settings)
    except AppError:
        return "missing"
    return "here"
