"""What every host of an engine offers: thread-safe calls in, batches of events out.

Two hosts: :class:`~streamapp.engine.process.EngineProcess` (a child process; the service's) and :class:`EngineThread`
(a thread of this process; for tests and scripts).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from streamapp.engine.engine import Engine
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event, Inbox
from streamapp.engine.job import Job
from streamapp.engine.kept_weights import WeightCalls
from streamapp.engine.tiers import Loaded


class Host(Protocol):
    """An engine that runs elsewhere. Every method may be called from any thread."""

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``restarting``, ``failed`` or ``closed``."""

    def start(self) -> None:
        """Begin to start; returns at once."""

    def close(self) -> None:
        """End it; unfinished jobs are gone."""

    def load(
        self,
        name: str,
        path: str | Path,
        family: str | None = None,
        variant: str | None = None,
        keep: Collection[str] = (),
    ) -> Loaded:
        """Like the engine's, and kept: loaded again after a restart."""

    def prefetch(self, path: str | Path, family: str | None = None, variant: str | None = None) -> None:
        """Like the engine's."""

    def prefetch_lora(self, path: str | Path) -> None:
        """Like the engine's."""

    def unload(self, name: str) -> None:
        """Like the engine's."""

    def load_lora(self, name: str, path: str | Path, model: str) -> Loaded:
        """Like the engine's, and kept."""

    def unload_lora(self, name: str) -> None:
        """Like the engine's."""

    def load_embedding(self, name: str, path: str | Path, model: str) -> None:
        """Like the engine's, and kept."""

    def unload_embedding(self, name: str) -> None:
        """Like the engine's."""

    def submit(self, job: Job, job_id: str) -> str:
        """Hand a job over; what is wrong with it beyond its own values arrives as a ``failed`` event."""

    def cancel(self, job_id: str, index: int | None = None) -> None:
        """Like the engine's."""

    def park(self, job_id: str, index: int) -> bytes:
        """Like the engine's; the sample counts as handed back."""

    def resume(self, state: bytes) -> str:
        """Like the engine's."""

    def step(self, timeout: float = 0.0) -> list[Event]:
        """What happened, waiting up to ``timeout`` seconds for something."""

    def stats(self) -> dict[str, Any]:
        """The engine's last figures."""


#: A command that does nothing: a host that rests looks at its engine again.
WAKE: tuple[str, tuple[Any, ...], Future[Any]] = ("", (), Future())


def run_command(engine: Engine, name: str, args: tuple[Any, ...], events: list[Event]) -> Any:
    """Carry out one call on the engine's own thread; a refused job becomes a ``failed`` event."""
    if name == "redraw":
        return _redraw(engine, events, *args)
    if name == "submit":
        try:
            return engine.submit(*args)
        except Exception as error:  # noqa: BLE001 (nobody waits for an answer: what fails unforeseen must end the job too)
            events.append(Event(args[1], -1, "failed", _failure(error)))
            return args[1]
    return getattr(engine, name)(*args)


def _redraw(
    engine: Engine, events: list[Event], job_id: str, job: Job | None, left: list[int], states: dict[int, bytes]
) -> None:
    """Draw what is left of a job: images with a state from there, where it does not fit and all others anew."""
    anew, problem = [], None
    for index in left:
        try:
            if index in states:
                engine.resume(states[index])
            else:
                anew.append(index)
        except EngineError as error:
            anew.append(index)
            problem = error
    try:
        if anew and job is None:
            raise problem or EngineError("bad_state", "the parked sample is lost")
        if anew and job is not None:
            engine.submit(job, job_id, anew)
    except Exception as error:  # noqa: BLE001 (as with submit: the job must end)
        events.append(Event(job_id, -1, "failed", _failure(error)))


def _failure(error: Exception) -> EngineError:
    """What its caller is told of a job that cannot begin."""
    if isinstance(error, EngineError):
        return error
    return EngineError("internal", f"the job cannot begin: {type(error).__name__}: {error}")


class EngineThread(WeightCalls):
    """An engine in a thread of this process: same calls as a process host, no crash protection."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._commands: queue.SimpleQueue[tuple[str, tuple[Any, ...], Future[Any]] | None] = queue.SimpleQueue()
        self._events = Inbox()
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

    def _asked(self, method: str, *args: Any) -> Any:
        return self._call(method, *args).result()

    def submit(self, job: Job, job_id: str) -> str:
        """Hand a job over."""
        job.check()
        self._call("submit", job, job_id)
        return job_id

    def cancel(self, job_id: str, index: int | None = None) -> None:
        """Take samples out at the next tick."""
        self._call("cancel", job_id, index)

    def park(self, job_id: str, index: int) -> bytes:
        """Take a sample out between two ticks."""
        state: bytes = self._call("park", job_id, index).result()
        return state

    def resume(self, state: bytes) -> str:
        """Draw a parked sample on."""
        job_id: str = self._call("resume", state).result()
        return job_id

    def step(self, timeout: float = 0.0) -> list[Event]:
        """Events of the ticks since, waiting up to ``timeout`` seconds for the first."""
        return self._events.take(timeout)

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
        engine.decoder.wake = lambda: self._commands.put(WAKE)
        self.state = "ready"
        while True:
            refused: list[Event] = []
            while not self._commands.empty() or engine.idle or engine.resting:
                command = self._commands.get()
                if command is None:
                    engine.close()
                    return
                name, args, future = command
                if not name:
                    continue
                try:
                    future.set_result(run_command(engine, name, args, refused))
                except Exception as error:  # noqa: BLE001 (the caller gets whatever it was; the loop goes on)
                    future.set_exception(error)
                if refused:
                    break
            events = [*refused, *engine.step()]
            self._stats = engine.stats()
            self._events.put(events)
