"""One server process on loopback: start, stop, pull the plug, start again on the same data."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

#: Below every system's range of ephemeral ports: a client that reconnects to a killed server would else now and
#: then take the server's own port as its source, connect to itself, and keep the port from the restart.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A loopback port nobody listens on right now, outside the ephemeral range."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def listening(port: int) -> bool:
    """Whether something accepts connections on the loopback ``port``."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server(ABC):
    """A server with its own folder; ports and data stay the same over ``kill`` and ``start``.

    Synchronous on purpose, so that fixtures, scripts and benchmarks use it alike; start takes seconds.
    """

    name: ClassVar[str]
    #: Seconds from start until it answers; generous, since CI machines have two busy cores.
    start_within: ClassVar[float] = 60.0

    def __init__(self, folder: Path | None = None) -> None:
        """Use ``folder`` for data and log; without one a temporary folder that ``close`` removes."""
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"streamapp-{self.name}-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / f"{self.name}.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The address clients use."""

    @abstractmethod
    def _prepare(self) -> None:
        """Lay out the data folder; called once before the first start."""

    @abstractmethod
    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        """The command line and the extra environment of the process."""

    def _answers(self) -> bool:
        """Whether a client would be served now."""
        return listening(self.port)

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start, or start again on the same port and data, and return once it answers.

        Raises :class:`~tests.servers.install.Missing` if its program cannot be had, RuntimeError with the end of
        its log if it does not come up.
        """
        if self.running:
            raise RuntimeError(f"{self.name} is running already")
        prepared = self.folder / ".prepared"
        if not prepared.exists():
            self._prepare()
            prepared.touch()
        arguments, extra = self._command()
        with self.log.open("ab") as out:
            # An own session: Ctrl-C in a terminal must reach the fixtures first, not the server.
            process = self._process = subprocess.Popen(
                [str(part) for part in arguments],
                env={**os.environ, **extra},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        atexit.register(self.kill)
        end = time.monotonic() + self.start_within
        while not self._answers():
            if process.poll() is not None or time.monotonic() > end:
                self.kill()
                tail = self.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self.name} did not start within {self.start_within:.0f} s:\n{tail}")
            time.sleep(0.05)
        return self

    def stop(self, within: float = 20.0) -> None:
        """End it the orderly way (SIGTERM); kill it if that takes longer than ``within`` seconds."""
        if self._process is not None and self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(within)
        self.kill()

    def kill(self) -> None:
        """Pull the plug (SIGKILL) and return once it is gone; harmless when it is not running."""
        atexit.unregister(self.kill)
        if self._process is None:
            return
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """Stop it and remove its temporary folder."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
