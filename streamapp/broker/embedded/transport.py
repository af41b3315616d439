"""The Faust transport of ``embedded://``: hands out consumer and producer over one log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from faust.exceptions import ImproperlyConfigured
from faust.transport import base
from faust.types.transports import ConsumerT, ProducerT

from streamapp.broker.embedded.consumer import Consumer
from streamapp.broker.embedded.log import Log
from streamapp.broker.embedded.producer import Producer
from streamapp.broker.embedded.shared import acquire_log, release_log


@runtime_checkable
class EmbeddedApp(Protocol):
    """What the transport asks of the application: where the log lies. ``embedded_max_bytes`` may bound it."""

    embedded_log_path: Path


class Transport(base.Transport):
    """Consumer and producer over the log at ``app.embedded_log_path``; committed offsets belong to ``app.conf.id``."""

    Consumer: ClassVar[type[ConsumerT]] = Consumer
    Producer: ClassVar[type[ProducerT]] = Producer

    driver_version = "embedded=1"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._users = 0
        self._log: Log | None = None
        self._opening = asyncio.Lock()

    async def acquire(self) -> Log:
        """The log, opened for the first user. Raises ``LogInUse`` when another process has it."""
        async with self._opening:
            if self._log is None:
                if not isinstance(self.app, EmbeddedApp):
                    raise ImproperlyConfigured("embedded:// needs app.embedded_log_path, the file of the log")
                limit: int | None = getattr(self.app, "embedded_max_bytes", None)
                self._log = await asyncio.to_thread(acquire_log, Path(self.app.embedded_log_path), max_bytes=limit)
            self._users += 1
            return self._log

    async def release(self) -> None:
        """Give the log back after the last user."""
        async with self._opening:
            self._users -= 1
            if self._users == 0 and self._log is not None:
                log, self._log = self._log, None
                await asyncio.to_thread(release_log, log)
