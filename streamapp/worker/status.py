"""What this process says about itself on ``worker_status``: on change, at most once a second, at least every five."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from streamapp.errors import Unavailable
from streamapp.records import WorkerStatus
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

if TYPE_CHECKING:
    from streamapp.worker.worker import Worker

log = get_logger(__name__)

#: Fields that do not count as a change.
VOLATILE = {"at": 0}


class StatusWriter:
    """Builds and sends the statuses of one process; ``worker`` is ``None`` in the web role."""

    def __init__(
        self,
        settings: Settings,
        role: str,
        worker: Worker | None,
        *,
        now: Callable[[], int],
        port: Callable[[], int],
        send: Callable[[WorkerStatus], Awaitable[None]],
    ) -> None:
        self.settings = settings
        self.role = role
        self.worker = worker
        self.state = "running"
        self._now = now
        self._port = port
        self._send = send
        self._started_at = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start sending."""
        self._started_at = self._now()
        self._task = asyncio.create_task(self._run(), name="status")

    def changed(self) -> None:
        """Something that the status says may have changed."""
        self._changed.set()

    async def close(self) -> None:
        """Stop sending, and say that this process is gone."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self.state = "gone"
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(3.0):
                await self._send(self.build())

    def build(self) -> WorkerStatus:
        """The status of this moment."""
        settings, worker = self.settings, self.worker
        status = WorkerStatus(
            worker_id=settings.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            port=self._port(),
            role=self.role,
            families=settings.families if worker else (),
            device=settings.device if worker else "",
            engine=worker.drawing.state if worker else "closed",
            state=self.state,
            started_at=self._started_at,
            at=self._now(),
        )
        return status if worker is None else status.model_copy(update=worker.facts())

    async def _run(self) -> None:
        last: WorkerStatus | None = None
        sent = 0.0
        while True:
            # Not wait_for: it swallows a cancellation that comes together with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.status_interval):
                    await self._changed.wait()
            self._changed.clear()
            status = self.build()
            same = last is not None and status.model_copy(update=VOLATILE) == last
            if same and time.monotonic() - sent < self.settings.status_keepalive:
                continue
            try:
                await self._send(status)
            except Unavailable:
                log.debug("status not sent: the broker is away", action="status_waits")
            except Exception:  # supervised: without statuses the router forgets this worker
                log.exception("a status could not be sent", action="status_failed")
            else:
                last, sent = status.model_copy(update=VOLATILE), time.monotonic()
            await asyncio.sleep(self.settings.status_interval)
