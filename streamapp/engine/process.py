"""The process host: an engine in a child process, so that neither a long tick nor a crash touches the parent.

When the child dies (kill -9, segfault, CUDA error) or hangs, every unfinished job gets a retryable
``engine_crashed`` failure, and a new child is started with the same checkpoints and adapters. Whether a job is drawn
again is the caller's decision: it may be the one that killed the child.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event
from streamapp.engine.job import Job
from streamapp.engine.wire import Beat, Call, Happened, Ready, Reply

#: Pause before another start after a child that died young, doubling up to the last.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
YOUNG_S = 30.0
OVER = frozenset({"image", "failed", "cancelled"})


class EngineProcess:
    """An engine in a child process; see :class:`streamapp.engine.host.Host`.

    Args:
        start_grace: seconds the child may take until it is ready (imports, device); then it is killed.
        hung_after: seconds without a heartbeat, or in one tick, after which the child counts as hung and is killed.
        options: of :class:`~streamapp.engine.engine.Engine`, JSON-serialisable.
    """

    def __init__(self, *, start_grace: float = 120.0, hung_after: float = 300.0, **options: Any) -> None:
        self._grace = max(start_grace, 1.0)
        self._hung_after = hung_after
        self._options = options
        self._lock = threading.RLock()
        self._events: queue.SimpleQueue[list[Event]] = queue.SimpleQueue()
        self._numbers = count(1)
        self._futures: dict[int, Future[Any]] = {}
        self._left: dict[str, set[int]] = {}
        self._models: dict[str, Call] = {}
        self._loras: dict[tuple[str, str], Call] = {}
        self._stats: dict[str, Any] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._sign_of_life = 0.0
        self._keeper: threading.Thread | None = None
        self._ready = threading.Event()
        self.state = "closed"
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start the child and the thread that looks after it; returns at once."""
        if self.state == "closed":
            self.state = "starting"
            self._keeper = threading.Thread(target=self._keep, name="engine-host", daemon=True)
            self._keeper.start()

    def close(self) -> None:
        """End the child and wait for it."""
        with self._lock:
            self.state = "closed"
            self._hang_up()
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join(10)

    # Weights: remembered, so that a new child gets them too.
    def load(self, name: str, path: str | Path, family: str | None = None, variant: str | None = None) -> None:
        """Load a checkpoint; returns when the child has it."""
        call = Call(0, "load", (name, str(Path(path).absolute()), family, variant))
        self._call(call).result()
        self._models[name] = call

    def unload(self, name: str) -> None:
        """Free a checkpoint and the adapters loaded for it."""
        self._models.pop(name, None)
        for key in [key for key in self._loras if key[1] == name]:
            del self._loras[key]
        self._call(Call(0, "unload", (name,))).result()

    def load_lora(self, name: str, path: str | Path, model: str) -> None:
        """Load an adapter; returns when the child has it."""
        call = Call(0, "load_lora", (name, str(Path(path).absolute()), model))
        self._call(call).result()
        self._loras[name, model] = call

    def unload_lora(self, name: str) -> None:
        """Forget an adapter."""
        for key in [key for key in self._loras if key[0] == name]:
            del self._loras[key]
        self._call(Call(0, "unload_lora", (name,))).result()

    # Jobs.
    def submit(self, job: Job, job_id: str) -> str:
        """Hand a job over; while the child restarts it fails at once with a retryable error event."""
        job.check()
        with self._lock:
            self._left[job_id] = set(range(job.num_images))
            if not self._send(Call(0, "submit", (job, job_id))):
                self._lose([job_id])
        return job_id

    def cancel(self, job_id: str, index: int | None = None) -> None:
        """Take samples out at the next tick."""
        with self._lock:
            self._send(Call(0, "cancel", (job_id, index)))

    def step(self, timeout: float = 0.0) -> list[Event]:
        """Events since, waiting up to ``timeout`` seconds for the first."""
        try:
            events = self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait()
        except queue.Empty:
            return []
        while not self._events.empty():
            events = [*events, *self._events.get_nowait()]
        return events

    def run(self) -> Any:
        """Events until every submitted job is at its end."""
        while self._left or not self._events.empty():
            yield from self.step(0.1)

    def stats(self) -> dict[str, Any]:
        """The engine's figures as of its last message."""
        return self._stats

    # The child's life.
    def _keep(self) -> None:
        """Start, listen, mourn, start again."""
        pause = FIRST_PAUSE_S
        while self.state != "closed":
            born = time.monotonic()
            self._spawn()
            self._listen()
            self._bury()
            if self.state == "closed":
                return
            self.state = "restarting"
            self.restarts += 1
            pause = FIRST_PAUSE_S if time.monotonic() - born > YOUNG_S else min(pause * 2, LONGEST_PAUSE_S)
            time.sleep(pause)

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        threads = str(self._options.get("threads", 1))
        with self._lock:
            if self.state == "closed":
                return
            self._child = subprocess.Popen(
                [sys.executable, "-m", "streamapp.engine.child", str(theirs.fileno()), json.dumps(self._options)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            )
            theirs.close()
            self._pipe = Connection(ours.detach())
            self._ready.clear()
            self._sign_of_life = time.monotonic() + self._grace - self._hung_after

    def _listen(self) -> None:
        """Handle what the child says until it is gone, or kill it when it says nothing for too long."""
        pipe = self._pipe
        try:
            while pipe is not None:
                if pipe.poll(0.5):
                    self._heard(pipe.recv())
                elif time.monotonic() - self._sign_of_life > self._hung_after:
                    return
        except (EOFError, OSError):
            return

    def _heard(self, message: object) -> None:
        now = time.monotonic()
        if self._ready.is_set():
            self._sign_of_life = now
        match message:
            case Ready():
                with self._lock:
                    self._sign_of_life = now
                    self._ready.set()
                    self.state = "ready"
                    for call in [*self._models.values(), *self._loras.values()]:
                        self._send(call)
            case Beat(busy_s=busy_s):
                if busy_s > self._hung_after:
                    raise EOFError("hung in a tick")
            case Reply(number=number, value=value, error=error):
                future = self._futures.pop(number, None)
                if future is not None:
                    future.set_result(value) if error is None else future.set_exception(error)
            case Happened(events=events, stats=stats):
                self._stats = stats or self._stats
                for event in events:
                    self._account(event)
                if events:
                    self._events.put(events)

    def _account(self, event: Event) -> None:
        """Keep track of which jobs are unfinished."""
        if event.kind in OVER and event.job_id in self._left:
            left = self._left[event.job_id]
            left.discard(event.index)
            if not left or event.index < 0:
                del self._left[event.job_id]

    def _bury(self) -> None:
        """The child is gone, or must go: every caller and every unfinished job is told."""
        with self._lock:
            self._ready.clear()
            self._hang_up()
            lost, self._futures = self._futures, {}
            jobs = list(self._left)
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        error = EngineError("engine_crashed", "the engine's process ended; it is being restarted", retryable=True)
        for future in lost.values():
            future.set_exception(error)
        self._lose(jobs)

    def _hang_up(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _lose(self, jobs: list[str]) -> None:
        closed = self.state == "closed"
        code, message = (
            ("engine_closed", "the engine was closed")
            if closed
            else ("engine_crashed", "the engine's process ended while it held this job")
        )
        error = EngineError(code, message, retryable=True)
        for job_id in jobs:
            self._left.pop(job_id, None)
        if jobs:
            self._events.put([Event(job_id, -1, "failed", error) for job_id in jobs])

    def _call(self, call: Call) -> Future[Any]:
        """Send a call that is answered; waits for the child to be ready first (start grace)."""
        future: Future[Any] = Future()
        self._ready.wait(self._grace)
        with self._lock:
            number = next(self._numbers)
            self._futures[number] = future
            if not self._send(Call(number, call.method, call.args)):
                del self._futures[number]
                future.set_exception(EngineError("engine_crashed", "the engine is not running", retryable=True))
        return future

    def _send(self, call: Call) -> bool:
        if self._pipe is None or not self._ready.is_set():
            return False
        try:
            self._pipe.send(call)
        except OSError:
            return False
        return True
