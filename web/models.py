"""What can be drawn with: models, LoRAs, samplers, styles and families."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from streamapp.db import LoraRow, ModelRow
from streamapp.engine.names import AUTO, SAMPLERS
from streamapp.models.families import traits_of
from streamapp.models.styles import STYLES
from web.answers import API, iso, ok


def attach(app: Any) -> None:
    """Add the route."""

    async def models(_: web.Request) -> web.Response:
        shelf, served = app.runtime.shelf, app.settings.families
        checkpoints = [row for row in await shelf.models() if row.family in served]
        loras = [row for row in await shelf.loras() if row.family in served]
        return ok(
            {
                "models": [of_model(row) for row in checkpoints],
                "loras": [of_lora(row) for row in loras],
                "samplers": [*SAMPLERS, AUTO],
                "styles": [
                    {"name": style.name, "aliases": list(style.aliases), "adds": style.words}
                    for style in STYLES.values()
                ],
                "families": list(served),
            }
        )

    app.web.web_app.router.add_get(f"{API}/models", models)


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


def _weights(row: ModelRow | LoraRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": row.version,
        "family": row.family,
        "digest": row.digest,
        "size": row.size,
        "last_used_at": iso(row.last_used_at),
    }
