"""Weights that failed to load again and again are left alone until somebody looks: the row says so, to all workers.

Failures are counted in the row, as the next try may be another worker's; a load that succeeds forgets them. A file that
arrives anew (``pull``, ``add``), ``verify`` that finds every byte right, and ``release`` lift it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from streamapp.db.rows import EVICTED, LoraRow, ModelRow
from streamapp.errors import AppError
from streamapp.models.steering import is_controlnet
from streamapp.telemetry import get_logger

log = get_logger(__name__)
Row = ModelRow | LoraRow
Traits = Mapping[str, Any]
#: Traits of a row: why nobody draws with it; how often in a row it failed to load.
QUARANTINED, FAILURES = "quarantined", "load_failures"
#: Fields of a request that name weights, by kind.
FIELDS = {"model": "model", "lora": "loras", "controlnet": "controls"}
#: Failures in a row after which weights are left alone.
LIMIT = 3


class Quarantined(AppError):
    """Weights that failed to load too often."""

    code = "quarantined"
    status = 409


class Editable(Protocol):
    """The part of the registry that is used here."""

    async def edit(self, row: Row, change: Callable[[dict[str, Any]], Traits]) -> bool:
        """Change the traits of a row as they are at this moment."""


def why(row: Row) -> str | None:
    """The reason of a quarantine as a sentence; ``None`` when there is none.

    What is not on the disk is fetched again before it is drawn with, and then it is another file.
    """
    facts = row.traits.get(QUARANTINED)
    if not isinstance(facts, Mapping) or row.traits.get(EVICTED):
        return None
    return f"it failed to load {facts.get('failures')} times in a row, last: {facts.get('message')}"


def refuse(row: Row) -> None:
    """Return for weights that may be drawn with.

    Raises:
        Quarantined: says why not, and what lifts it.
    """
    reason = why(row)
    if reason is None:
        return
    kind = "controlnet" if is_controlnet(row) else "lora" if isinstance(row, LoraRow) else "model"
    raise Quarantined(
        f"{row.name} is in quarantine: {reason}; its operator lifts that with `streamapp {kind}s verify {row.name}`, "
        "`pull` or `release`",
        field=FIELDS[kind],
        name=row.name,
    )


async def failed(registry: Editable, row: Row, error: AppError) -> None:
    """Count a load that failed; at the limit nobody loads these weights any more."""

    def change(traits: dict[str, Any]) -> Traits:
        times = int(traits.get(FAILURES, 0)) + 1
        traits[FAILURES] = times
        if times >= LIMIT and QUARANTINED not in traits:
            facts = {"code": error.code, "message": error.message[:500], "at": int(time.time() * 1000)}
            traits[QUARANTINED] = {**facts, "failures": times}
        return traits

    await registry.edit(row, change)
    log.warning(error.message, action="load_failed", name=row.name, code=error.code)


async def worked(registry: Editable, row: Row) -> None:
    """A load succeeded: failures before it count no longer. Costs nothing where there were none."""
    if row.traits.get(FAILURES):
        await release(registry, row)


async def release(registry: Editable, row: Row) -> bool:
    """Let everybody draw with it again; whether it was in quarantine."""
    was = False

    def change(traits: dict[str, Any]) -> Traits:
        nonlocal was
        was = QUARANTINED in traits
        return {name: value for name, value in traits.items() if name not in (QUARANTINED, FAILURES)}

    return await registry.edit(row, change) and was
