"""Calls to a child process that are not answered yet."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from typing import Any

from streamapp.engine.errors import EngineError
from streamapp.engine.wire import Call, Reply


class OutstandingCalls:
    """Who waits for which answer, by number."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._calls: dict[int, tuple[Call, Future[Any]]] = {}

    def add(self, call: Call) -> tuple[Call, Future[Any]]:
        """The call with its number, and its answer to come."""
        numbered = replace(call, number=next(self._numbers))
        self._calls[numbered.number] = numbered, Future()
        return self._calls[numbered.number]

    def take(self, number: int) -> tuple[Call, Future[Any]] | None:
        """Forget a call that is answered; None for one that is not waited for any more."""
        return self._calls.pop(number, None)

    def fail(self, error: EngineError) -> None:
        """All of them, when nobody is left to answer."""
        waiting, self._calls = self._calls, {}
        for _, future in waiting.values():
            future.set_exception(error)


def answer(future: Future[Any], reply: Reply) -> None:
    """Hand a reply to the caller."""
    if reply.error is None:
        future.set_result(reply.value)
    else:
        future.set_exception(reply.error)
