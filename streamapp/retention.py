"""Forgets what is older than ``keep_days``: ended tasks with their pictures, webhooks and dead letters, and inputs.

One process does it, chosen by a row in ``leases``, in small batches. Files go before rows, so that a crash in between
leaves a row to find them by; deleting what is gone already is harmless.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from streamapp.db import ENDED, Inputs, Past, Retention
from streamapp.errors import AppError, Unavailable
from streamapp.storage import Storage, image_key, input_key
from streamapp.telemetry import get_logger

if TYPE_CHECKING:
    from streamapp.runtime import Runtime

log = get_logger(__name__)

#: Tasks forgotten by one transaction, files deleted at the same time, and the rest in between (seconds).
BATCH, TOGETHER, PAUSE = 100, 16, 0.05
#: Longest time between two looks, in seconds.
INTERVAL = 60.0
DAY = 86_400.0


class Elects(Protocol):
    """Who may do a job that only one process may do."""

    async def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take or renew the right to the job ``name``."""


class Purger:
    """Forgets ended tasks; ``keep_s`` is how long they are kept, in seconds."""

    def __init__(
        self, retention: Retention, inputs: Inputs, storage: Storage, leases: Elects, keep_s: float, name: str
    ) -> None:
        self._retention = retention
        self._inputs = inputs
        self._storage = storage
        self._leases = leases
        self._keep_s = keep_s
        self._holder = f"{name}-{secrets.token_hex(3)}"
        self.interval = min(INTERVAL, keep_s / 10)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self.interval)
            try:
                await self.sweep()
            except Unavailable as error:
                log.warning(error.message, action="purge_waits")
            except Exception:  # supervised: a defect here must not end the process, the next look may succeed
                log.exception("forgetting old tasks failed", action="purge_failed")

    async def sweep(self) -> int:
        """Forget everything that is old enough, unless another process does; how many tasks.

        A task whose files cannot be deleted is kept for the next time.

        Raises:
            Unavailable: the database does not answer, or the storage deletes nothing at all.
        """
        forgotten = 0
        for state in sorted(ENDED):
            after = ""
            while await self._elected():
                batch = await self._retention.ended_before(state, self._keep_s, after, BATCH)
                if not batch:
                    break
                after = batch[-1].task_id
                forgotten += await self._retention.forget(await self._delete_files(batch), self._keep_s)
                await asyncio.sleep(PAUSE)
        if forgotten:
            log.info("old tasks and their pictures are forgotten", action="purged", tasks=forgotten)
        await self._sweep_inputs()
        return forgotten

    async def _sweep_inputs(self) -> None:
        """Forget pictures that were sent in and that nobody uses: the row first, so that nobody names it any more."""
        while await self._elected():
            batch = await self._inputs.unused(self._keep_s, BATCH)
            for digest in batch:
                if await self._inputs.forget(digest, self._keep_s):
                    await self._storage.delete(input_key(digest))
            if len(batch) < BATCH:
                return
            await asyncio.sleep(PAUSE)

    async def _elected(self) -> bool:
        return await self._leases.lease("retention", self._holder, max(30.0, 3 * self.interval))

    async def _delete_files(self, batch: Iterable[Past]) -> list[str]:
        """Delete the pictures of tasks; the tasks of which none is left."""
        gate = asyncio.Semaphore(TOGETHER)
        failed: list[Unavailable] = []

        async def delete(task: Past) -> str | None:
            async with gate:
                try:
                    for key in keys_of(task):
                        await self._storage.delete(key)
                except Unavailable as error:
                    failed.append(error)
                    return None
                except AppError as error:
                    # No key of ours: there is nothing to delete under it.
                    log.warning(error.message, action="purge_skipped", task_id=task.task_id)
                return task.task_id

        done = [task_id for task_id in await asyncio.gather(*map(delete, batch)) if task_id is not None]
        if failed and not done:
            raise failed[0]
        return done


def keys_of(task: Past) -> list[str]:
    """Where pictures of a task may lie: those its rows name, and those of a worker that could not end it."""
    unnamed = [image_key(task.task_id, index) for index in range(task.n) if task.drawn and index not in task.keys]
    return [*task.keys.values(), *unnamed]


async def purge(runtime: Runtime) -> None:
    """Run the purger of a process; sleeps for ever where everything is kept."""
    settings = runtime.settings
    if not settings.keep_days:
        await asyncio.Event().wait()
    retention = Retention(runtime.database)
    keep_s = settings.keep_days * DAY
    await Purger(retention, runtime.inputs, runtime.storage, runtime.delivery, keep_s, settings.worker_id).run()
