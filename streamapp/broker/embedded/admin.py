"""The admin port over the embedded log of this process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from streamapp.broker.admin import TopicSpec
from streamapp.broker.embedded.log import Log
from streamapp.broker.embedded.shared import acquire_log, release_log
from streamapp.broker.record import TP, Record
from streamapp.errors import Unavailable


class EmbeddedAdmin:
    """See :class:`streamapp.broker.admin.Admin`. Opens the log, so it raises ``LogInUse`` beside another process."""

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._log: Log | None = None

    async def start(self) -> None:
        """Open the log, or share it with the transport of this process."""
        if self._log is None:
            self._log = await asyncio.to_thread(acquire_log, self._path, max_bytes=self._max_bytes)

    async def close(self) -> None:
        """Give the log back."""
        log, self._log = self._log, None
        if log is not None:
            await asyncio.to_thread(release_log, log)

    def _ensure(self) -> Log:
        if self._log is None:
            raise Unavailable("the embedded broker is not open")
        return self._log

    async def ping(self) -> None:
        """Ask the writer for an empty transaction: a full disk or a dead writer shows."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._ensure().commit("", {})), 5)
        except (sqlite3.Error, TimeoutError) as error:
            raise Unavailable(f"the embedded broker does not write: {error or 'no answer in 5 s'}") from error

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create what is missing."""
        return await asyncio.wrap_future(self._ensure().create_topics(specs))

    async def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Partition counts of the topics that exist."""
        known = self._ensure().topics
        return {topic: known[topic].partitions for topic in topics if topic in known}

    def _tps(self, topics: Iterable[str]) -> list[TP]:
        known = self._ensure().topics
        return [TP(topic, number) for topic in topics if topic in known for number in range(known[topic].partitions)]

    async def committed(self, group: str, topics: Iterable[str]) -> dict[TP, int]:
        """Committed offsets of a group."""
        log = self._ensure()
        found = {tp: log.committed(group, tp) for tp in self._tps(topics)}
        return {tp: offset for tp, offset in found.items() if offset is not None}

    async def bounds(self, topics: Iterable[str]) -> dict[TP, tuple[int, int]]:
        """First and end offsets."""
        log = self._ensure()
        return {tp: log.bounds(tp) for tp in self._tps(topics)}

    async def offsets_since(self, topics: Iterable[str], at: int) -> dict[TP, int]:
        """Where a time begins."""
        log = self._ensure()
        return {tp: await asyncio.wrap_future(log.offset_since(tp, at)) for tp in self._tps(topics)}

    async def read(self, topic: str, partition: int, start: int, limit: int) -> list[Record]:
        """Old records."""
        return await asyncio.wrap_future(self._ensure().read(TP(topic, partition), start, limit))
