"""Weights that waiting tasks name are fetched; their tasks are queued when they are here, or end with the reason.

One process does it, chosen by a lease row; what is waited for stands in the task rows, so that another one goes on
when it dies, from the bytes that are on the disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from streamapp.db import Arrivals, LoraRow, ModelRow, TaskRow
from streamapp.errors import AppError, NotFound, Unavailable
from streamapp.models.cache import EVICTED, PULLED_FROM
from streamapp.models.download import NoSpace
from streamapp.models.fetching import Fetch
from streamapp.scheduling.cost import estimate
from streamapp.telemetry import get_logger

if TYPE_CHECKING:
    from streamapp.runtime import Runtime

log = get_logger(__name__)
#: Seconds between two looks, with tasks waiting and with none; for how long one process has the right to do it.
BUSY, QUIET, LEASE = 0.5, 1.0, 10.0
#: Tasks looked at in one turn.
MOST = 500
#: Times that a fetch is tried which failed for a reason that may pass, and seconds between two of them.
TRIES, PAUSE = 3, 5.0
#: Seconds for which room on the disk is waited for: what is in use now may make some when its tasks have ended.
ROOM = 600.0
#: Progress is written when it is this much more than what was written last.
STEP = 0.01
Key = tuple[str, str]


class Weights(Protocol):
    """The part of the registry that is read here."""

    async def model(self, name: str, version: str | None = None) -> ModelRow | None:
        """One checkpoint, by default its last added version."""

    async def lora(self, name: str, version: str | None = None) -> LoraRow | None:
        """One LoRA, by default its last added version."""


class Fetching(Protocol):
    """What fetches; the same thing asked twice is one fetch."""

    async def start(self, text: str, name: str | None = None, digest: str | None = None) -> Fetch:
        """Begin, or join the fetch that does; ``digest`` is the SHA-256 that has to come."""


class Lease(Protocol):
    """The right to do a job alone."""

    async def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take or renew it; whether ``holder`` has it now."""


@dataclass(slots=True)
class Wanted:
    """One file that tasks wait for: its fetch of the moment, how often it was begun, when it is begun again."""

    fetch: Fetch | None = None
    tries: int = 0
    again_at: float = 0.0
    full_since: float | None = None
    error: dict[str, Any] | None = None


@dataclass(slots=True)
class Arriving:
    """The loop of one process; ``holder`` is its name on the lease row."""

    arrivals: Arrivals
    registry: Weights
    fetches: Fetching
    leases: Lease
    holder: str
    _wanted: dict[Key, Wanted] = field(default_factory=dict)
    _said: dict[str, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Turn after turn until cancelled."""
        while True:
            busy = False
            try:
                busy = await self.turn()
            except Unavailable as error:
                log.warning(error.message, action="arrivals_wait")
            except Exception:  # supervised: the next turn may succeed, and without one tasks would wait for ever
                log.exception("looking after fetches failed", action="arrivals_failed")
            await asyncio.sleep(BUSY if busy else QUIET)

    async def turn(self) -> bool:
        """One look at all that wait; whether this process looks after any."""
        rows = await self.arrivals.waiting(MOST)
        if not rows or not await self.leases.lease("arrivals", self.holder, LEASE):
            self._wanted.clear()
            self._said.clear()
            return False
        sources = await self._sources({key for row in rows for key in names(row)})
        missing = {row.id: [key for key in names(row) if key in sources] for row in rows}
        self._wanted = {key: self._wanted.get(key) or Wanted() for key in sources}
        self._said = {row.id: self._said.get(row.id, 0.0) for row in rows}
        for key, (source, digest) in sources.items():
            await self._advance(self._wanted[key], source, key[1], digest)
        await self.arrivals.arrived([task_id for task_id, keys in missing.items() if not keys])
        for row in rows:
            errors = [self._wanted[key].error for key in missing[row.id]]
            if (error := next((error for error in errors if error is not None), None)) is not None:
                await self._give_up(row, missing[row.id], error)
        await self._tell(missing)
        # Everybody who waited has heard it: whoever names it from now on has it tried again.
        self._wanted = {key: wanted for key, wanted in self._wanted.items() if wanted.error is None}
        return True

    async def _sources(self, keys: AbstractSet[Key]) -> dict[Key, tuple[str, str]]:
        """What of ``keys`` is not here, and from where and with which digest each has to come."""
        found: dict[Key, tuple[str, str]] = {}
        for kind, name in sorted(keys):
            row = await (self.registry.model(name) if kind == "model" else self.registry.lora(name))
            # What nobody knows any more is the worker's to refuse: it says so by name.
            if row is not None and row.traits.get(EVICTED):
                found[kind, name] = (str(row.traits.get(PULLED_FROM, "")), row.digest)
        return found

    async def _advance(self, wanted: Wanted, source: str, name: str, digest: str) -> None:
        """Begin the fetch, or again after a failure that may pass; note one that will not."""
        now = asyncio.get_running_loop().time()
        fetch = wanted.fetch
        if fetch is not None and not fetch.ended:
            return
        if fetch is not None and fetch.error is not None and fetch.error.get("code") == NoSpace.code:
            wanted.full_since = now if wanted.full_since is None else wanted.full_since
            if now - wanted.full_since >= ROOM:
                wanted.error = fetch.error
                return
            wanted.fetch, wanted.tries, wanted.again_at = None, wanted.tries - 1, now + PAUSE
        elif fetch is not None and fetch.error is not None:
            if not fetch.error.get("retryable") or wanted.tries >= TRIES:
                wanted.error = fetch.error
                return
            wanted.fetch, wanted.again_at = None, now + PAUSE * wanted.tries
        elif fetch is not None and wanted.tries >= TRIES:
            wanted.error = NotFound(f"{name} was fetched from {source}, and is not what was there", name=name).as_dict()
            return
        if now < wanted.again_at:
            return
        try:
            if not source:
                raise NotFound(f"{name} is not here, and was not fetched from anywhere", name=name)
            wanted.fetch = await self.fetches.start(source, name, digest or None)
            wanted.tries += 1
            log.info("weights are fetched for waiting tasks", action="fetch_began", name=name, tries=wanted.tries)
        except AppError as error:
            if not error.retryable:
                wanted.error = error.as_dict()

    async def _give_up(self, row: TaskRow, missing: Sequence[Key], error: dict[str, Any]) -> None:
        """Draw with the fallback model, if that helps, or end the task with the reason."""
        if row.params.fallback is not None and all(kind == "model" for kind, _ in missing):
            other = row.params.fall_back(str(error["code"]))
            await self.arrivals.fall_back(row.id, other, estimate(other), {**error, "next_model": other.model})
        else:
            await self.arrivals.failed([row.id], error)
        log.warning(error["message"], action="fetch_given_up", task_id=row.id, code=error["code"])

    async def _tell(self, missing: Mapping[str, Sequence[Key]]) -> None:
        """Write how far the fetches of each task are."""
        shares: dict[str, float] = {}
        for task_id, keys in missing.items():
            fetches = [self._wanted[key].fetch for key in keys]
            here = sum(fetch.bytes for fetch in fetches if fetch is not None)
            total = sum(fetch.total or 0 for fetch in fetches if fetch is not None)
            share = min(here / total, 1.0) if total else 0.0
            if keys and share >= self._said[task_id] + STEP:
                shares[task_id] = self._said[task_id] = share
        await self.arrivals.beat(shares)


def names(row: TaskRow) -> list[Key]:
    """The weights that a task is drawn with: kind and name of each."""
    return [("model", row.params.model), *(("lora", name) for name in row.params.added)]


async def look_after(runtime: Runtime) -> None:
    """Fetch what tasks wait for, in the one process that has the right to; until cancelled."""
    holder = f"{runtime.settings.worker_id}/{os.getpid()}"
    arrivals = Arrivals(runtime.database)
    await Arriving(arrivals, runtime.registry, runtime.fetches, runtime.delivery, holder).run()
