"""Ends of tasks, written in bulk: what arrives while one transaction runs goes into the next one together."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from streamapp.db import Claims, End, State
from streamapp.errors import Unavailable
from streamapp.telemetry import get_logger

log = get_logger(__name__)
LARGEST = 200
LONGEST_DELAY = 5.0


class Finisher:
    """One writer of terminal rows per worker; tries again while the database is away."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._queue: list[tuple[End, asyncio.Future[State | None]]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the writing task."""
        self._task = asyncio.create_task(self._run(), name="finisher")

    async def close(self) -> None:
        """Stop; whoever still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for _, future in self._queue:
            future.cancel()

    async def finish(self, end: End) -> State | None:
        """Write ``end``; the state the row got by it, ``None`` when the claim no longer holds."""
        future: asyncio.Future[State | None] = asyncio.get_running_loop().create_future()
        self._queue.append((end, future))
        self._wake.set()
        return await future

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch, self._queue = self._queue[:LARGEST], self._queue[LARGEST:]
                await self._write([entry for entry in batch if not entry[1].cancelled()])

    async def _write(self, batch: list[tuple[End, asyncio.Future[State | None]]]) -> None:
        delay = 0.1
        while batch:
            try:
                states = await self._claims.finish([end for end, _ in batch])
            except Unavailable as error:
                log.warning(error.message, action="finish_waits", tasks=len(batch))
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY)
                continue
            except Exception as error:  # noqa: BLE001 - one row must not take the others down: see below
                if len(batch) == 1:
                    if not batch[0][1].done():
                        batch[0][1].set_exception(error)
                    return
                for entry in batch:
                    await self._write([entry])
                return
            for end, future in batch:
                if not future.done():
                    future.set_result(states.get(end.task_id))
            return
