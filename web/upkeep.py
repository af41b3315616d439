"""What operators do to a model or LoRA over HTTP: make it ready before anybody asks, let it out of quarantine."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from streamapp import read_models
from streamapp.db import LoraRow, ModelRow
from streamapp.errors import AppError, Conflict, InvalidRequest, NotFound
from streamapp.models import quarantine
from streamapp.models.cache import EVICTED, PULLED_FROM, Kind
from streamapp.models.catalogue import locate, notes_root
from streamapp.models.verified import DamagedWeights, check_weights
from streamapp.telemetry import get_logger
from web.answers import API, ok, raw
from web.auth import USER
from web.models import KINDS, find_named, operators_only

log = get_logger(__name__)
#: How long a request waits for weights to be ready before it is told to ask again, in seconds.
WAIT = 20.0
POLL = 0.1
Row = ModelRow | LoraRow


class Warming:
    """One at a time for each file, however many ask; it goes on when they do not wait."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._running: dict[tuple[Kind, str], asyncio.Task[float]] = {}

    async def warm(self, kind: Kind, row: Row) -> float | None:
        """The seconds that it took to have weights ready; ``None``: it takes longer still.

        Raises:
            AppError: they cannot be had, or do not load.
        """
        key = (kind, row.name)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._warm(kind, row), name=f"warm {row.name}")
            task.add_done_callback(lambda ended: self._ended(key, ended))
        done, _ = await asyncio.wait({task}, timeout=WAIT)
        if not done:
            return None
        return task.result()

    def _ended(self, key: tuple[Kind, str], task: asyncio.Task[float]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waited has heard it

    async def _warm(self, kind: Kind, row: Row) -> float:
        loop = asyncio.get_running_loop()
        began, runtime = loop.time(), self._app.runtime
        if row.traits.get(EVICTED):
            row = await self._fetched(row)
        path = await self._here(row)
        if isinstance(row, LoraRow):
            settings = self._app.settings
            try:
                await asyncio.to_thread(check_weights, row, path, notes_root(settings), settings.verify)
            except DamagedWeights:
                if not await runtime.fetches.bring.mended(row):
                    raise
        else:
            seconds = await runtime.worker.drawing.warm(row, path)
            runtime.worker.loaded(row.name, seconds)
        log.info("weights made ready", action="warmed", kind=kind, name=row.name)
        return float(loop.time() - began)

    async def _fetched(self, row: Row) -> Row:
        """Weights that made room, or never were here, as a request would have them fetched."""
        fetch = await self._app.runtime.fetches.start(str(row.traits.get(PULLED_FROM, "")), row.name)
        while not fetch.ended:  # noqa: ASYNC110 - a fetch is told by its state
            await asyncio.sleep(POLL)
        if fetch.row is None:
            error = AppError(str(fetch.error["message"]))
            error.code, error.status = str(fetch.error["code"]), 502
            raise error
        found: Row = fetch.row
        return found

    async def _here(self, row: Row) -> Any:
        try:
            return await asyncio.to_thread(locate, row, self._app.settings)
        except NotFound:
            if not await self._app.runtime.fetches.bring(row):
                raise
        return await asyncio.to_thread(locate, row, self._app.settings)


def attach(app: Any) -> None:
    """Add the routes."""
    warming, router = Warming(app), app.web.web_app.router

    def views(kind: Kind) -> None:
        async def warm(request: web.Request) -> web.Response:
            operators_only(app, request, f"warming {kind}s")
            row = (await _newest(app, kind, request))[0]
            quarantine.refuse(row)
            _check_worker(app, row)
            seconds = await warming.warm(kind, row)
            if seconds is None:
                return raw({"code": 0, "message": "on its way", "data": _told(kind, row, "on its way", None)}, 202)
            return ok(_told(kind, row, "ready", round(seconds, 3)))

        async def release(request: web.Request) -> web.Response:
            operators_only(app, request, f"releasing {kind}s")
            rows = await _newest(app, kind, request)
            was = [await quarantine.release(app.runtime.registry, row) for row in rows]
            app.runtime.shelf.forget()
            log.info("weights released", action="released", kind=kind, name=rows[0].name, user=request[USER])
            return ok({"name": rows[0].name, "released": any(was)})

        router.add_post(f"{API}/{kind}s/{{name}}/warm", warm)
        router.add_post(f"{API}/{kind}s/{{name}}/release", release)

    for kind in KINDS:
        views(kind)


async def _newest(app: Any, kind: Kind, request: web.Request) -> list[Row]:
    """Every version of the name in the address, the newest first."""
    rows = await find_named(app, kind, request.match_info["name"])
    newest = await (app.runtime.registry.model if kind == "model" else app.runtime.registry.lora)(rows[0].name)
    return [*([] if newest is None else [newest]), *(row for row in rows if row != newest)]


def _check_worker(app: Any, row: Row) -> None:
    """Only a process with an engine of the family has where to load.

    Raises:
        Conflict: says which processes have.
        InvalidRequest: no worker here serves the family.
    """
    if row.family not in app.settings.families:
        raise InvalidRequest(f"{row.name} is of family {row.family}, which no worker here serves", field="name")
    if app.runtime.worker is None:
        there = [f"{one.host}:{one.port}" for one in read_models.statuses(app) if one.role != "web"]
        raise Conflict(f"this process has no worker: ask one of the workers ({', '.join(there[:20]) or 'none runs'})")


def _told(kind: Kind, row: Row, state: str, seconds: float | None) -> dict[str, Any]:
    return {"kind": kind, "name": row.name, "state": state, "seconds": seconds}
