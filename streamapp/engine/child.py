"""The engine's own process: ``python -m streamapp.engine.child FD OPTIONS``, started by the process host.

Ends by itself within a moment of its parent's death, also in mid-tick: a thread waits for the pipe to close. Ignores
SIGINT and SIGTERM, which reach the whole process group: running work is the parent's to finish or to hand back.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from streamapp.engine.engine import Engine
from streamapp.engine.events import Event
from streamapp.engine.host import run_command
from streamapp.engine.wire import Beat, Call, Happened, Ready, Reply

BEAT_S = 1.0
STATS_S = 0.25


class Child:
    """Reads calls, steps the engine, writes what happened."""

    def __init__(self, connection: Connection, options: dict[str, Any]) -> None:
        self._connection = connection
        self._keep_every = float(options.pop("keep_every", 0.0))
        self._options = options
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._tick_began: float | None = None
        self._engine: Engine | None = None

    def run(self) -> None:
        """Serve until the parent closes the pipe."""
        threading.Thread(target=self._read, name="calls", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        engine = Engine(**self._options)
        self._engine = engine
        engine.decoder.wake = lambda: self._calls.put(None)
        self._send(Ready())
        told, kept = 0.0, time.monotonic()
        while True:
            refused: list[Event] = []
            while not self._calls.empty() or ((engine.idle or engine.resting) and not refused):
                call = self._calls.get()
                if call is not None:
                    self._answer(engine, call, refused)
            self._tick_began = time.monotonic()
            events = [*refused, *engine.step()]
            self._tick_began = None
            now = time.monotonic()
            stats = engine.stats() if now - told > STATS_S or engine.idle else None
            told = now if stats else told
            due = self._keep_every and now - kept > self._keep_every
            kept = now if due else kept
            self._send(Happened(events, stats, engine.snapshots() if due else []))

    def _answer(self, engine: Engine, call: Call, refused: list[Event]) -> None:
        value, failure = None, None
        try:
            value = run_command(engine, call.method, call.args, refused)
        except Exception as error:  # noqa: BLE001 (whatever it is belongs to the caller; the child goes on)
            failure = error
        if call.number:
            self._send(Reply(call.number, value, failure))
            self._send(Happened([], engine.stats()))

    def _send(self, message: object) -> None:
        try:
            with self._lock:
                # Plain pickling: once torch is imported, a pipe's own passes tensors by descriptors that need a fork.
                self._connection.send_bytes(pickle.dumps(message))
        except OSError:
            os._exit(0)  # nobody is left to work for

    def _read(self) -> None:
        try:
            while True:
                self._calls.put(self._connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent closed the pipe or died: end now, also in mid-tick

    def _beat(self) -> None:
        while True:
            engine, now = self._engine, time.monotonic()
            begun = [self._tick_began, None if engine is None else engine.decoder.began]
            since = min((began for began in begun if began is not None), default=now)
            began, expected = (None if engine is None else engine.ticks.under_way) or (now, 0.0)
            self._send(Beat(now - since, now - began, expected))
            time.sleep(BEAT_S)


def main() -> None:
    """Entry of the child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Child(Connection(int(sys.argv[1])), json.loads(sys.argv[2])).run()


if __name__ == "__main__":
    main()
