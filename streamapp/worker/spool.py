"""Finished pictures on their way to the storage: kept in bounded memory and tried again while it is away."""

from __future__ import annotations

import asyncio

from streamapp.errors import Unavailable
from streamapp.storage import Storage
from streamapp.telemetry import get_logger

log = get_logger(__name__)
LONGEST_DELAY = 5.0


class Spool:
    """Puts pictures into the storage; above ``limit`` bytes on the way nothing new should be drawn."""

    def __init__(self, storage: Storage, limit: int = 256 * 1024**2) -> None:
        self._storage = storage
        self.limit = limit
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether the storage is so far behind that drawing must wait."""
        return self.bytes >= self.limit

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store one picture, however long that takes; idempotent by key."""
        self.bytes += len(data)
        delay = 0.2
        try:
            while True:
                try:
                    await self._storage.put(key, data, content_type)
                    return
                except Unavailable as error:
                    log.warning(error.message, action="storage_waits", key=key, waiting_bytes=self.bytes)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, LONGEST_DELAY)
        finally:
            self.bytes -= len(data)
