"""The one thread that writes the log's file: group commit, and cleaning between two batches."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from streamapp.broker.embedded.upkeep import Upkeep
from streamapp.errors import Unavailable

logger = logging.getLogger(__name__)

#: Seconds between two cleanings.
UPKEEP_INTERVAL = 30.0
BATCH = 2000


class _Order(NamedTuple):
    """``write`` runs in the transaction, ``publish`` after it; its result is the future's."""

    write: Callable[[sqlite3.Connection], Any]
    publish: Callable[[Any], Any]
    future: Future[Any]


class Writer:
    """Owns the writing connection. ``undo`` is called after a rollback, ``announce`` after each batch."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        upkeep: Upkeep,
        *,
        undo: Callable[[], None],
        announce: Callable[[], None],
    ) -> None:
        self._connection, self._upkeep, self._undo, self._announce = connection, upkeep, undo, announce
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def order(self, write: Callable[[sqlite3.Connection], Any], publish: Callable[[Any], Any]) -> Future[Any]:
        """Have something written; the future holds what ``publish`` made of it once it is durable."""
        if self._closed:
            raise Unavailable("the embedded broker is closed")
        future: Future[Any] = Future()
        # Whoever stops waiting cannot take the order back.
        future.set_running_or_notify_cancel()
        self._orders.put(_Order(write, publish, future))
        return future

    def close(self) -> None:
        """Write what was ordered, then end. Blocks."""
        self._closed = True
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + UPKEEP_INTERVAL
        while True:
            batch = self._take(0.0 if self._upkeep.busy else max(0.0, due - time.monotonic()))
            if batch is None:
                return
            if batch:
                self._write(batch)
            if time.monotonic() >= due or self._upkeep.pressing:
                self._upkeep.begin()
                due = time.monotonic() + UPKEEP_INTERVAL
            if self._upkeep.busy:
                # One short transaction between two batches: cleaning never holds up a producer.
                error = self._transaction(self._upkeep.step)
                if error is not None:
                    logger.warning("cleaning the embedded log failed, it is tried again later: %s", error)

    def _take(self, timeout: float) -> list[_Order] | None:
        """Everything waiting; an empty list after ``timeout`` seconds; ``None`` when closed."""
        batch: list[_Order] = []
        try:
            order = self._orders.get(timeout=timeout) if timeout > 0 else self._orders.get_nowait()
            while order is not None:
                batch.append(order)
                if len(batch) >= BATCH:
                    return batch
                order = self._orders.get_nowait()
            if not batch:
                return None
            self._orders.put(None)
        except Empty:
            pass
        return batch

    def _transaction(self, work: Callable[[], Any]) -> Exception | None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            work()
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - boundary of the thread: the caller's future carries it on
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._undo()
            return error
        return None

    def _write(self, batch: list[_Order]) -> None:
        results: list[Any] = []
        error = self._transaction(lambda: results.extend(order.write(self._connection) for order in batch))
        if error is not None:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            # One order may be wrong by itself: the others must not fail with it.
            for order in batch:
                self._write([order])
            return
        answers = [order.publish(result) for order, result in zip(batch, results, strict=True)]
        # Consumers are told first: they have work to do.
        self._announce()
        for order, answer in zip(batch, answers, strict=True):
            order.future.set_result(answer)
