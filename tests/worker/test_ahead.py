"""What waiting tasks will need is asked for in time, once, and whatever fails is left to those who need it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamapp.errors import NotFound
from streamapp.models.shipped import POCKET
from streamapp.worker.ahead import AGAIN, Ahead
from streamapp.worker.policy import Ticket, Waiting


class Shelf:
    """Weights by name; ``gone`` is registered and lies nowhere."""

    def __init__(self) -> None:
        self.brought: list[str] = []
        self.ahead = Ahead(self.find, self.find, self.locate, self.bring)

    async def find(self, name: str) -> Any:
        """The row of a name."""
        return None if name == "unknown" else replace(POCKET, name=name)

    def locate(self, row: Any) -> Path:
        """Where it lies."""
        if row.name == "gone":
            raise NotFound("it is not here")
        return Path(row.name)

    async def bring(self, row: Any, path: Path) -> None:
        """Note what was asked for."""
        assert path == Path(row.name)
        self.brought.append(row.name)

    async def settled(self) -> list[str]:
        """What was asked for so far, once nothing is under way."""
        async with asyncio.timeout(5):
            if self.ahead._task is not None:
                await self.ahead._task
        return self.brought


async def test_what_is_wanted_is_asked_for_once_in_a_while_and_errors_stop_nothing() -> None:
    shelf = Shelf()
    shelf.ahead.want(["gone", "one", "unknown", "one"], ["style"], now=0.0)
    assert await shelf.settled() == ["one", "style"]
    shelf.ahead.want(["one", "two"], ["style"], now=1.0)
    assert await shelf.settled() == ["one", "style", "two"]
    shelf.ahead.want(["one"], [], now=AGAIN)
    assert await shelf.settled() == ["one", "style", "two", "one"]
    await shelf.ahead.close()


def ticket(task_id: str, model: str, since: float, user: str = "u") -> Ticket:
    return Ticket(task_id, model, user, 2, 1.0, int(since), since)


def test_soon_come_the_current_model_and_the_one_that_waits_most() -> None:
    waiting = Waiting()
    for number in range(6):
        waiting.add(ticket(f"a{number}", "a", 90.0 + number, user=f"u{number % 2}"))
    waiting.add(ticket("b", "b", 95.0))
    waiting.add(ticket("c", "c", 10.0))
    first = waiting.ticket("a0")
    assert first is not None
    waiting.take(first, 100.0)
    soon = [one.task_id for one in waiting.soon(100.0, most=3)]
    assert (set(soon[:3]) < {f"a{number}" for number in range(1, 6)}, soon[3:]) == (True, ["c"])
    # A switch that costs nothing comes first.
    assert waiting.soon(100.0, lambda model: 0.0 if model == "b" else 1000.0)[-1].task_id == "b"


def test_nothing_waits() -> None:
    assert Waiting().soon(0.0) == []
