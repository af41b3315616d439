"""A worker over a real database and a real folder, with a steered engine and no broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agents import gpu
from streamapp.clock import Clock
from streamapp.db import (
    Claims,
    Database,
    Delivery,
    Inputs,
    NewTask,
    Registry,
    State,
    TaskRow,
    Tasks,
    open_database,
    upgrade,
)
from streamapp.models import shipped
from streamapp.records import DeadLetter
from streamapp.settings import Settings
from streamapp.storage import LocalStorage
from streamapp.worker.loading import Watch
from streamapp.worker.parts import Parts
from streamapp.worker.pictures import Orders, Publisher
from streamapp.worker.spool import Spool
from streamapp.worker.worker import Worker
from tests.worker.fake_drawing import FakeDrawing
from tests.worker.support import Acks, message, params


@dataclass
class Bench:
    """The worker and everything around it."""

    settings: Settings
    database: Database
    storage: LocalStorage
    drawing: FakeDrawing
    worker: Worker
    acks: Acks = field(default_factory=Acks)
    letters: list[DeadLetter] = field(default_factory=list)

    @property
    def tasks(self) -> Tasks:
        """The user's side."""
        return Tasks(self.database)

    @property
    def claims(self) -> Claims:
        """Another worker's side."""
        return Claims(self.database)

    @property
    def delivery(self) -> Delivery:
        """The outbox's side."""
        return Delivery(self.database)

    async def submit(self, *ids: str, deliver: bool = True, **given: Any) -> None:
        """Insert tasks and deliver their messages."""
        deadline = given.pop("deadline_ms", None)
        for task_id in ids:
            shape = {key: given[key] for key in ("n", "steps", "seed") if key in given}
            model = given.get("model", "pocket")
            row, _ = await self.tasks.insert(
                NewTask(
                    id=task_id, user_id="local", idempotency_key=None, priority=given.get("priority", 2), family="sd15",
                    model=model, params=params(model=model, **shape), request={"text": "a cute panda"}, cost=1.0,
                    max_attempts=given.get("max_attempts", 3), deadline_ms=deadline,
                )
            )  # fmt: skip
            if deliver:
                self.deliver(row, **shape)

    def deliver(self, row: TaskRow, **shape: Any) -> None:
        """One delivery of a task's message."""
        task = message(row.id, priority=row.priority, model=row.model, deadline_at=row.deadline_at, **shape)
        self.worker.receive(task, self.acks.receipt(), time.monotonic())

    async def row(self, task_id: str) -> TaskRow:
        """A task as it is."""
        row = await self.tasks.get(task_id)
        assert row is not None
        return row

    async def until(self, condition: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
        """Wait for a condition, with a bound."""
        async with asyncio.timeout(within):
            while not await condition():
                await asyncio.sleep(0.01)

    async def ended(self, *ids: str, within: float = 10.0) -> dict[str, State]:
        """Wait until tasks are at their end and their jobs have left the worker."""

        async def done() -> bool:
            seen = await self.tasks.watch(ids)
            held = any(self.worker.backlog.get(task_id) is not None for task_id in ids)
            return not held and all(seen[i].state not in {State.QUEUED, State.RUNNING} for i in ids)

        await self.until(done, within)
        return {i: glimpse.state for i, glimpse in (await self.tasks.watch(ids)).items()}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A running worker on SQLite and a folder."""
    settings = Settings(data_dir=tmp_path, worker_id="w1", lease=4.0, lease_renewal=0.3, drain=1.0)
    await upgrade(settings.database_url)
    database = open_database(settings.database_url)
    await database.start()
    registry = Registry(database)
    await shipped.seed(registry)
    storage = LocalStorage(tmp_path / "files")
    await storage.start()
    clock, drawing, spool = Clock(database.now), FakeDrawing(), Spool(storage)
    letters: list[DeadLetter] = []
    orders = Orders(settings, registry, Inputs(database), storage)

    async def keep(letter: DeadLetter) -> None:
        letters.append(letter)

    parts = Parts(
        claims=Claims(database),
        drawing=drawing,
        spool=spool,
        clock=clock,
        order=orders,
        publish=Publisher(settings, spool, clock),
        dead_letter=keep,
        release=print,
        watch=Watch(registry, orders.forget),
    )
    worker = Worker(settings, parts)
    await worker.start()
    agent = asyncio.create_task(gpu.run(worker))
    yield Bench(settings, database, storage, drawing, worker, letters=letters)
    agent.cancel()
    await asyncio.gather(agent, return_exceptions=True)
    await worker.close()
    await storage.close()
    await database.close()
