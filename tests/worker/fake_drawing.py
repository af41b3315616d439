"""An engine that a test steers: pictures of one colour, held back or failing on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np

from streamapp.errors import AppError
from streamapp.worker.drawing import Drawn, EngineCrashed, Order, Progress


class FakeDrawing:
    """See :class:`streamapp.worker.drawing.Drawing`; draws at once unless the gate is closed."""

    def __init__(self, room: int = 8) -> None:
        self.state = "ready"
        self.capacity = room
        self.orders: list[str] = []
        self.most = 0
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: dict[str, list[AppError]] = {}
        self.poison: set[str] = set()
        self.loras: Mapping[str, str] = {}
        self._active: dict[str, int] = {}
        self._crash: asyncio.Future[list[str]] | None = None

    @property
    def running(self) -> int:
        """Samples in the engine."""
        return sum(self._active.values())

    @property
    def checkpoints(self) -> Mapping[str, str]:
        """One model is there."""
        return {"pocket": "vram"}

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to stop."""
        self.state = "closed"

    async def ahead(self, row: Any, path: Any) -> None:
        """Nothing is read."""

    async def warm(self, model: Any, path: Any) -> float:
        """Nothing to load."""
        return 0.0

    def room(self, width: int, height: int) -> int:
        """Free places."""
        return self.capacity - self.running

    def crash(self) -> None:
        """Die with everything that is being drawn."""
        if self._crash is not None and not self._crash.done():
            self._crash.set_result(sorted(self._active))
        self._crash = None

    async def draw(self, order: Order) -> AsyncIterator[Progress | Drawn]:
        """One picture per image, once the gate is open."""
        task_id, n = order.row.id, order.row.params.n
        self.orders.append(task_id)
        self._active[task_id] = n
        self.most = max(self.most, len(self._active))
        crash = self._crash = self._crash or asyncio.get_running_loop().create_future()
        finished = False
        try:
            yield Progress(0.5)
            if self.failures.get(task_id):
                raise self.failures[task_id].pop(0)
            if task_id in self.poison:
                await asyncio.sleep(0)
                self.crash()
            opened = asyncio.ensure_future(self.gate.wait())
            await asyncio.wait({opened, crash}, return_when=asyncio.FIRST_COMPLETED)
            opened.cancel()
            if crash.done():
                raise EngineCrashed("the engine died", suspects=crash.result())
            for index in range(n):
                yield Drawn(index, np.full((128, 128, 3), 40 + index, np.uint8), {"denoise": 0.01})
            finished = True
        finally:
            self._active.pop(task_id, None)
            if not finished:
                self.cancelled.append(task_id)
