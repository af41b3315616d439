"""Whole processes inside the test: embedded broker, SQLite, a folder, the real agents and tables, a steered engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from streamapp import topics
from streamapp.app import Role, StreamApp, create_app
from streamapp.db import NewTask, State
from streamapp.records import TaskMessage
from streamapp.run import Process
from streamapp.settings import Settings
from tests.worker.fake_drawing import FakeDrawing
from tests.worker.support import params


class Service:
    """A process under test."""

    def __init__(self, app: StreamApp, process: Process, drawing: FakeDrawing) -> None:
        self.app = app
        self.process = process
        self.drawing = drawing
        self.task = asyncio.create_task(process.run())

    async def until(self, condition: Callable[[], Awaitable[bool]], within: float = 20.0) -> None:
        """Wait for a condition, with a bound; fail at once when the process ends."""
        async with asyncio.timeout(within):
            while not await condition():
                assert not self.task.done(), f"the process ended with {self.task.result()}"
                await asyncio.sleep(0.02)

    async def ready(self) -> None:
        """Wait for tables and agents."""

        async def tables() -> bool:
            return self.app.tables_ready

        await self.until(tables)

    async def stop(self) -> int:
        """Stop as a signal would; the exit code."""
        self.process.stopping.set()
        return await asyncio.wait_for(self.task, 30)

    async def insert(self, *ids: str, **given: Any) -> list[TaskMessage]:
        """Rows without delivery, and their messages."""
        messages = []
        for task_id in ids:
            new = NewTask(
                id=task_id,
                user_id="local",
                idempotency_key=None,
                priority=given.get("priority", 2),
                family="sd15",
                model="pocket",
                params=params(n=given.get("n", 1)),
                request={"text": "a cute panda"},
                cost=1.0,
                max_attempts=3,
                # Far ahead, so that only the test delivers.
                produce_delay_ms=3_600_000,
            )
            row, _ = await self.app.runtime.tasks.insert(new)
            messages.append(
                TaskMessage(
                    task_id=row.id,
                    user_id=row.user_id,
                    family=row.family,
                    model=row.model,
                    params=row.params,
                    priority=row.priority,
                    cost=row.cost,
                    submitted_at=row.submitted_at,
                )
            )
        return messages

    async def deliver(self, *ids: str, **given: Any) -> None:
        """Rows and their messages on the family's topic."""
        for message in await self.insert(*ids, **given):
            topic = topics.topic_for(message.family, message.priority)
            await self.app.produce(topic, None, message.task_id.encode(), message.encode())

    async def ended(self, *ids: str, within: float = 20.0) -> dict[str, State]:
        """Wait until all tasks are at their end."""

        async def done() -> bool:
            seen = await self.app.runtime.tasks.watch(ids)
            return all(seen[task_id].state not in {State.QUEUED, State.RUNNING} for task_id in ids)

        await self.until(done, within)
        return {i: seen.state for i, seen in (await self.app.runtime.tasks.watch(ids)).items()}


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts processes: each is stopped at the end of its ``async with``, however the test ends."""

    @asynccontextmanager
    async def run(role: Role = "up", **given: Any) -> AsyncIterator[Service]:
        drawing = FakeDrawing()
        monkeypatch.setattr("streamapp.worker.engine.open_drawing", lambda settings: drawing)
        base: dict[str, Any] = {
            "data_dir": tmp_path,
            "port": 0,
            "worker_id": "up-1",
            "drain": 2.0,
            "commit_interval": 0.2,
        }
        app = create_app(Settings(**{**base, **given}), role)
        service = Service(app, Process(app), drawing)
        try:
            yield service
        finally:
            if not service.task.done():
                await service.stop()

    return run
