"""Is this process alive, and can it do its work right now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from streamapp.errors import AppError, Unavailable
from streamapp.telemetry import get_logger
from web.answers import raw

log = get_logger(__name__)
#: What does not answer within this time is not ready, in seconds.
PATIENCE = 3.0
Ping = Callable[[], Awaitable[None]]


def attach(app: Any) -> None:
    """Add ``/healthz`` and ``/readyz``."""
    asking: list[asyncio.Task[dict[str, dict[str, Any]]]] = []

    async def alive(_: web.Request) -> web.Response:
        return raw({"status": "alive"})

    async def ready(_: web.Request) -> web.Response:
        if app.closing.is_set():
            return _answer({}, "stopping")
        try:
            pings = app.runtime.pings()
        except Unavailable as error:
            return _answer({"process": {"ok": False, "message": error.message}})
        # Many who ask at the same time get the answers to one set of questions.
        if not asking or asking[0].done():
            asking[:] = [asyncio.create_task(ask_all(pings), name="readyz")]
        return _answer(await asyncio.shield(asking[0]))

    router = app.web.web_app.router
    router.add_get("/healthz", alive)
    router.add_get("/readyz", ready)


def _answer(checks: dict[str, dict[str, Any]], status: str | None = None) -> web.Response:
    ready = status is None and all(check["ok"] for check in checks.values())
    body = {"status": status or ("ready" if ready else "not ready"), "checks": checks}
    return raw(body) if ready else raw(body, 503, {"Retry-After": "2"})


async def ask_all(pings: dict[str, Ping]) -> dict[str, dict[str, Any]]:
    """Ask everything at once; whether each answered, in how many milliseconds, and what it said if not."""
    answers = await asyncio.gather(*(_ask(name, ping) for name, ping in pings.items()))
    return dict(sorted(zip(pings, answers, strict=True)))


async def _ask(name: str, ping: Ping) -> dict[str, Any]:
    began = time.perf_counter()
    message = None
    try:
        await asyncio.wait_for(ping(), PATIENCE)
    except TimeoutError:
        message = f"no answer within {PATIENCE:g} s"
    except AppError as error:
        message = error.message
    except Exception:  # supervised: a ping that is broken means not ready, and the others still count
        log.exception("a readiness check failed", action="ping_failed", check=name)
        message = "the check itself failed; the log has the details"
    ms = round((time.perf_counter() - began) * 1000, 1)
    return {"ok": message is None, "ms": ms} | ({} if message is None else {"message": message})
