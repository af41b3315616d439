"""``GET /api/v1/status``: workers, backlog, what is resident where, throughput; the same from every process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from streamapp import __version__, read_models
from streamapp.errors import InvalidRequest, Unavailable
from web import models
from web.answers import API, iso, ok

MAX_MINUTES = 24 * 60


def attach(app: Any) -> None:
    """Add the route, and that of the models."""
    models.attach(app)

    async def status(request: web.Request) -> web.Response:
        runtime, settings = app.runtime, app.settings
        minutes = _minutes(request.query.get("minutes", "60"))
        return ok(
            {
                "service": {
                    "version": __version__,
                    "role": app.role,
                    "worker_id": settings.worker_id,
                    "app_id": settings.app_id,
                    "families": list(settings.families),
                    "broker": "embedded" if settings.embedded else "kafka",
                    "tables_ready": app.tables_ready,
                    "now": iso(runtime.clock.now()),
                    "counters": dict(app.counters),
                },
                "workers": [_worker(row) for row in read_models.workers(app)],
                "queue": await _queue(app),
                "backlog": read_models.backlog(app),
                "lora_state": read_models.lora_state(app),
                "throughput": [_window(row) for row in read_models.throughput(app, minutes)],
            }
        )

    app.web.web_app.router.add_get(f"{API}/status", status)


async def _queue(app: Any) -> dict[str, dict[str, int]] | None:
    """Tasks by model and state, as the database has them; ``None`` while it does not answer."""
    try:
        counts = await app.runtime.tasks.counts()
    except Unavailable:
        return None
    queue: dict[str, dict[str, int]] = defaultdict(dict)
    for (state, _, model), count in sorted(counts.items()):
        queue[model][state] = queue[model].get(state, 0) + count
    return dict(queue)


def _worker(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "at": iso(row["at"]), "started_at": iso(row["started_at"] or None)}


def _window(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "start_at": iso(row["start"])}


def _minutes(text: str) -> int:
    if len(text) > 6 or not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_MINUTES:
        raise InvalidRequest(f"minutes must be 1 to {MAX_MINUTES}, not {text[:20]!r}", field="minutes")
    return int(text)
