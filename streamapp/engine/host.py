"""What every host of an engine offers: thread-safe calls in, batches of events out.

Two hosts: :class:`~streamapp.engine.process.EngineProcess` (a child process; the service's) and :class:`EngineThread`
(a thread of this process; for tests and scripts).
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from streamapp.engine.engine import Engine
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event
from streamapp.engine.job import Job


class Host(Protocol):
    """An engine that runs elsewhere. Every method may be called from any thread."""

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``restarting``, ``failed`` or ``closed``."""

    def start(self) -> None:
        """Begin to start; returns at once."""

    def close(self) -> None:
        """End it; unfinished jobs are gone."""

    def load(self, name: str, path: str | Path, family: str | None = None, variant: str | None = None) -> None:
        """Like the engine's, and kept: loaded again after a restart."""

    def unload(self, name: str) -> None:
        """Like the engine's."""

    def load_lora(self, name: str, path: str | Path, model: str) -> None:
        """Like the engine's, and kept."""

    def unload_lora(self, name: str) -> None:
        """Like the engine's."""

    def submit(self, job: Job, job_id: str) -> str:
        """Hand a job over; what is wrong with it beyond its own values arrives as a ``failed`` event."""

    def cancel(self, job_id: str, index: int | None = None) -> None:
        """Like the engine's."""

    def step(self, timeout: float = 0.0) -> list[Event]:
        """What happened, waiting up to ``timeout`` seconds for something."""

    def stats(self) -> dict[str, Any]:
        """The engine's last figures."""


def run_command(engine: Engine, name: str, args: tuple[Any, ...], events: list[Event]) -> Any:
    """Carry out one call on the engine's own thread; a refused job becomes a ``failed`` event."""
    if name == "submit":
        try:
            return engine.submit(*args)
        except EngineError as error:
            events.append(Event(args[1], -1, "failed", error))
            return args[1]
    return getattr(engine, name)(*args)


class EngineThread:
    """An engine in a thread of this process: same calls as a process host, no crash protection."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._commands: queue.SimpleQueue[tuple[str, tuple[Any, ...], Future[Any]] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[list[Event]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stats: dict[str, Any] = {}
        self.state = "closed"

    def start(self) -> None:
        """Start the thread."""
        self.state = "starting"
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after the tick it is in."""
        if self._thread is not None:
            self._commands.put(None)
            self._thread.join()
        self.state = "closed"

    def load(self, name: str, path: str | Path, family: str | None = None, variant: str | None = None) -> None:
        """Load a checkpoint; returns when it is loaded."""
        self._call("load", name, path, family, variant).result()

    def unload(self, name: str) -> None:
        """Free a checkpoint."""
        self._call("unload", name).result()

    def load_lora(self, name: str, path: str | Path, model: str) -> None:
        """Load an adapter; returns when it is loaded."""
        self._call("load_lora", name, path, model).result()

    def unload_lora(self, name: str) -> None:
        """Forget an adapter."""
        self._call("unload_lora", name).result()

    def submit(self, job: Job, job_id: str) -> str:
        """Hand a job over."""
        job.check()
        self._call("submit", job, job_id)
        return job_id

    def cancel(self, job_id: str, index: int | None = None) -> None:
        """Take samples out at the next tick."""
        self._call("cancel", job_id, index)

    def step(self, timeout: float = 0.0) -> list[Event]:
        """Events of the ticks since, waiting up to ``timeout`` seconds for the first."""
        try:
            events = self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait()
        except queue.Empty:
            return []
        while not self._events.empty():
            events = [*events, *self._events.get_nowait()]
        return events

    def stats(self) -> dict[str, Any]:
        """Figures as of the last tick."""
        return self._stats

    def _call(self, name: str, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.state == "closed":
            future.set_exception(EngineError("engine_closed", "the engine is closed", retryable=True))
        else:
            self._commands.put((name, args, future))
        return future

    def _run(self) -> None:
        engine = Engine(**self._options)
        self.state = "ready"
        while True:
            refused: list[Event] = []
            while not self._commands.empty() or engine.idle:
                command = self._commands.get()
                if command is None:
                    engine.close()
                    return
                name, args, future = command
                try:
                    future.set_result(run_command(engine, name, args, refused))
                except Exception as error:  # noqa: BLE001 (the caller gets whatever it was; the loop goes on)
                    future.set_exception(error)
                if refused:
                    break
            events = [*refused, *engine.step()]
            self._stats = engine.stats()
            if events:
                self._events.put(events)
