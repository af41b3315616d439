"""The process host: an engine in a child process, so that neither a long tick nor a crash touches the parent.

When the child dies (kill -9, segfault, CUDA error) or hangs, a new one is started with the same checkpoints and
adapters and draws on: every sample from its last state that the parent was told, else from the start. A job that two
children died of is drawn alone, since it may be what kills them; after ``attempts`` children it gets a retryable
``engine_crashed`` failure.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event, Inbox
from streamapp.engine.job import Job
from streamapp.engine.kept_weights import KeptWeights, WeightCalls
from streamapp.engine.outstanding import OutstandingCalls, answer
from streamapp.engine.parked import about
from streamapp.engine.spawn import spawn
from streamapp.engine.tiers import Loaded
from streamapp.engine.unfinished import UnfinishedJobs
from streamapp.engine.wire import Beat, Call, Happened, Ready, Reply

#: Pause before another start after a child that died young, doubling up to the last.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
YOUNG_S = 30.0
#: A forward is stuck after so many times what it should take, and not before so many seconds.
STUCK_TIMES, STUCK_S = 30.0, 20.0


def stuck(beat: Beat) -> bool:
    """Whether a forward takes far longer than the longest of the ones like it."""
    return beat.expected_s > 0 and beat.tick_s > max(STUCK_S, STUCK_TIMES * beat.expected_s)


class EngineProcess(WeightCalls):
    """An engine in a child process, which starts with the first call; see :class:`streamapp.engine.host.Host`.

    Args:
        device, dtype, max_batch_rows, threads, options: the engine's own, JSON-serialisable.
        clock: monotonic seconds, by which a child counts as hung.
        start_grace: seconds the child may take until it is ready (imports, device); then it is killed.
        hung_after: seconds without a heartbeat, or in one step, after which the child counts as hung and is killed; a
            forward like others before it counts as hung sooner, see :func:`stuck`.
        attempts: children that may die while they hold a job, until it fails; with 1 nothing is drawn twice, and the
            caller decides.
        keep_every: seconds between two states of each running sample that the parent is told (0: none).
    """

    def __init__(  # noqa: PLR0913 (the engine's own and the host's)
        self,
        device: str = "cpu",
        dtype: str = "float32",
        max_batch_rows: int | None = None,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        *,
        start_grace: float = 120.0,
        hung_after: float = 300.0,
        attempts: int = 3,
        keep_every: float = 5.0,
        **options: Any,
    ) -> None:
        self._grace = max(start_grace, 1.0)
        self._hung_after = hung_after
        self._options = {
            "device": device,
            "dtype": dtype,
            "max_batch_rows": max_batch_rows,
            "threads": threads,
            **options,
        }
        self._clock = clock
        self._attempts = attempts
        self._keep_every = keep_every if attempts > 1 else 0.0
        self._lock = threading.RLock()
        self._events = Inbox()
        self._names = count(1)
        self._outstanding = OutstandingCalls()
        self._unfinished = UnfinishedJobs(attempts)
        self._weights = KeptWeights()
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
        """Start the child and the thread that looks after it, unless that was done before; returns at once."""
        if self._keeper is None:
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

    # Weights: kept, so that a new child gets them too.
    def _asked(self, method: str, *args: Any) -> Any:
        call = Call(0, method, args)
        dropped = method.startswith("unload")
        try:
            found = self._call(call).result()
            if method.startswith("load"):
                self._weights.add(call)
            for gone in found.evicted if isinstance(found, Loaded) else ():
                self._weights.drop(Call(0, "unload", (gone,)))
        except EngineError as error:
            dropped = dropped and error.code != "invalid_job"  # in use: it stays
            raise
        finally:
            if dropped:
                self._weights.drop(call)
        return found

    # Jobs.
    def submit(self, job: Job, job_id: str | None = None) -> str:
        """Hand a job over; while the child restarts it waits (with ``attempts`` of 1 it fails at once)."""
        job = job.check()
        self.start()
        with self._lock:
            job_id = job_id if job_id is not None else f"job-{next(self._names)}"
            self._unfinished.add(job_id, job)
            if not self._send(Call(0, "submit", (job, job_id))) and (self._attempts == 1 or self.state == "closed"):
                self._unfinished.take(job_id, -1)
                self._lose([job_id])
        return job_id

    def park(self, job_id: str, index: int) -> bytes:
        """Take a sample out between two ticks; its state is the caller's then."""
        state: bytes = self._call(Call(0, "park", (job_id, index))).result()
        return state

    def resume(self, state: bytes) -> str:
        """Draw a parked sample on; returns when the child has it."""
        job_id, _ = about(state)
        self._call(Call(0, "resume", (state,))).result()
        return job_id

    def cancel(self, job_id: str, index: int | None = None) -> None:
        """Take samples out at the next tick."""
        with self._lock:
            self._send(Call(0, "cancel", (job_id, index)))

    def step(self, timeout: float = 0.0) -> list[Event]:
        """Events since, waiting up to ``timeout`` seconds for the first."""
        return self._events.take(timeout)

    def run(self) -> Any:
        """Events until every submitted job is at its end."""
        while self._unfinished or self._events:
            yield from self.step(0.1)

    def stats(self) -> dict[str, Any]:
        """The engine's figures as of its last message."""
        return self._stats

    # The child's life.
    def _keep(self) -> None:
        """Start, listen, mourn, start again."""
        pause = FIRST_PAUSE_S
        while self.state != "closed":
            born = self._clock()
            self._spawn()
            self._listen()
            self._bury()
            if self.state == "closed":
                return
            self.state = "restarting"
            self.restarts += 1
            pause = FIRST_PAUSE_S if self._clock() - born > YOUNG_S else min(pause * 2, LONGEST_PAUSE_S)
            time.sleep(pause)

    def _spawn(self) -> None:
        with self._lock:
            if self.state == "closed":
                return
            self._child, self._pipe = spawn({**self._options, "keep_every": self._keep_every})
            self._ready.clear()
            self._sign_of_life = self._clock() + self._grace - self._hung_after

    def _listen(self) -> None:
        """Handle what the child says until it is gone, or kill it when it says nothing for too long."""
        pipe = self._pipe
        try:
            while pipe is not None:
                if pipe.poll(0.5):
                    self._heard(pipe.recv())
                elif self._clock() - self._sign_of_life > self._hung_after:
                    return
        except (EOFError, OSError):
            return

    def _heard(self, message: object) -> None:
        now = self._clock()
        if self._ready.is_set():
            self._sign_of_life = now
        match message:
            case Ready():
                with self._lock:
                    self._sign_of_life = now
                    self._ready.set()
                    self.state = "ready"
                    for call in [*self._weights, *self._unfinished.again()]:
                        self._send(call)
            case Beat():
                if message.busy_s > self._hung_after or stuck(message):
                    raise EOFError("hung")
            case Reply():
                self._answered(message)
            case Happened():
                self._happened(message)

    def _answered(self, reply: Reply) -> None:
        with self._lock:
            call, future = self._outstanding.take(reply.number) or (None, None)
            if call is not None and reply.error is None and call.method == "park":
                self._unfinished.take(*call.args)
            if call is not None and reply.error is None and call.method == "resume":
                self._unfinished.add_state(*about(call.args[0]), call.args[0])
        if future is not None:
            answer(future, reply)

    def _happened(self, message: Happened) -> None:
        self._stats = message.stats or self._stats
        with self._lock:
            for event in message.events:
                self._unfinished.account(event)
            for job_id, index, state in message.states:
                self._unfinished.keep(job_id, index, state)
            for call in self._unfinished.next_suspect():
                self._send(call)
        self._events.put(message.events)

    def _bury(self) -> None:
        """The child is gone, or must go: every caller is told, and the jobs that are given up."""
        with self._lock:
            self._ready.clear()
            self._hang_up()
            lost, self._outstanding = self._outstanding, OutstandingCalls()
            jobs = self._unfinished.clear() if self.state == "closed" else self._unfinished.died()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        lost.fail(EngineError("engine_crashed", "the engine's process ended; it is being restarted", retryable=True))
        self._lose(jobs)

    def _hang_up(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _lose(self, jobs: list[str]) -> None:
        error = EngineError("engine_crashed", "the engine's process ended while it held this job", retryable=True)
        if self.state == "closed":
            error = EngineError("engine_closed", "the engine was closed", retryable=True)
        self._events.put([Event(job_id, -1, "failed", error) for job_id in jobs])

    def _call(self, call: Call) -> Future[Any]:
        """Send a call that is answered; waits for the child to be ready first (start grace)."""
        self.start()
        self._ready.wait(self._grace)
        with self._lock:
            call, future = self._outstanding.add(call)
            if not self._send(call):
                self._outstanding.take(call.number)
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
