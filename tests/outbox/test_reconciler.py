"""Only messages that can never come again are sent again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from streamapp.broker.admin import TP, Admin
from streamapp.db import Claims, Database, Delivery, Lost, Tasks
from streamapp.db.rows import Produced
from streamapp.reconciler import Reconciler, is_lost
from streamapp.settings import Settings
from tests.db.support import claim, new, shift

HERE = TP("sd15_tasks", 1)


@dataclass
class Offsets:
    """What the broker says about its partitions."""

    commits: dict[TP, int] = field(default_factory=dict)
    ends: dict[TP, tuple[int, int]] = field(default_factory=lambda: {HERE: (0, 100)})
    groups: list[str] = field(default_factory=list)

    async def committed(self, group: str, topics: Iterable[str]) -> dict[TP, int]:
        self.groups.append(group)
        return {tp: offset for tp, offset in self.commits.items() if tp.topic in set(topics)}

    async def bounds(self, topics: Iterable[str]) -> dict[TP, tuple[int, int]]:
        return {tp: bounds for tp, bounds in self.ends.items() if tp.topic in set(topics)}


@pytest.mark.parametrize(
    ("offset", "committed", "bounds", "lost"),
    [
        (10, 10, (0, 100), False),
        (10, 9, (0, 100), False),
        (10, 11, (0, 100), True),
        (10, None, (0, 100), False),
        (10, 0, (11, 100), True),
        (10, 0, (10, 100), False),
        (10, 0, (0, 10), True),
        (10, 0, None, True),
        (None, 0, (0, 100), True),
    ],
)
def test_a_message_is_lost_below_the_commit_or_outside_of_the_log(
    offset: int | None, committed: int | None, bounds: tuple[int, int] | None, lost: bool
) -> None:
    row = Lost("a", "sd15_tasks", None if offset is None else 1, offset)
    commits = {} if committed is None else {HERE: committed}
    assert is_lost(row, commits, {} if bounds is None else {HERE: bounds}) is lost


async def old(tasks: Tasks, delivery: Delivery, database: Database, task_id: str, offset: int) -> None:
    """A task produced long ago to :data:`HERE`."""
    await tasks.insert(new(task_id))
    await delivery.mark_produced([Produced(task_id, *HERE, offset)])
    await shift(database, task_id, submitted_at=-600_000)


def reconciler(settings: Settings, delivery: Delivery, offsets: Offsets) -> Reconciler:
    return Reconciler(settings, delivery, cast("Admin", offsets))


async def test_a_lost_task_is_due_again_and_others_are_left_alone(
    settings: Settings, tasks: Tasks, delivery: Delivery, database: Database
) -> None:
    await old(tasks, delivery, database, "lost", 5)
    await old(tasks, delivery, database, "waiting", 50)
    offsets = Offsets(commits={HERE: 20})
    assert await reconciler(settings, delivery, offsets).run() == 1
    assert [row.id for row in await delivery.due(10)] == ["lost"]
    assert offsets.groups == [settings.app_id]


async def test_a_young_task_and_one_being_drawn_are_never_judged(
    settings: Settings, tasks: Tasks, delivery: Delivery, database: Database
) -> None:
    await tasks.insert(new("young"))
    await delivery.mark_produced([Produced("young", *HERE, 5)])
    await old(tasks, delivery, database, "running", 6)
    await claim(Claims(database), "running")
    assert await reconciler(settings, delivery, Offsets(commits={HERE: 20})).run() == 0
    assert await delivery.due(10) == []


async def test_a_task_whose_worker_died_after_the_commit_is_found(
    settings: Settings, tasks: Tasks, delivery: Delivery, database: Database
) -> None:
    await old(tasks, delivery, database, "orphan", 5)
    await claim(Claims(database), "orphan")
    await shift(database, "orphan", lease_until=-60_000)
    assert await reconciler(settings, delivery, Offsets(commits={HERE: 20})).run() == 1


async def test_a_broker_that_forgot_everything_gets_everything_again(
    settings: Settings, tasks: Tasks, delivery: Delivery, database: Database, monkeypatch: Any
) -> None:
    monkeypatch.setattr("streamapp.reconciler.PAGE", 3)
    for number in range(8):
        await old(tasks, delivery, database, f"t{number}", number)
    assert await reconciler(settings, delivery, Offsets(ends={HERE: (0, 0)})).run() == 8
