"""Tasks to test with, and what a test does with the clock and the statements of a database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, update

from streamapp.db import Claims, Database, End, ImageRow, NewTask, State, TaskRow
from streamapp.db.schema import tasks
from streamapp.generation import GenerationParams, LoraRef, Size
from streamapp.records import TaskEvent

TEXT = "une fée 🧚🏽‍♀️ sous la pluie, 可爱的熊猫, милый кот, कमल, ‎قطة"


def params(**changes: Any) -> GenerationParams:
    """Parameters with words of many languages."""
    small = Size(width=128, height=128)
    facts: dict[str, Any] = {
        "text": TEXT, "prompt": TEXT, "model": "pocket", "family": "sd15", "delivered": small, "drawn": small,
        "steps": 20, "guidance": 3.0, "sampler": "ddim", "seed": 7, "loras": (LoraRef(name="ink", weight=0.5),),
    }  # fmt: skip
    return GenerationParams(**facts | changes)


def new(task_id: str, **changes: Any) -> NewTask:
    """A task as submitted."""
    facts: dict[str, Any] = {
        "id": task_id, "user_id": "ana", "idempotency_key": None, "priority": 2, "family": "sd15", "model": "pocket",
        "params": params(), "request": {"text": TEXT}, "cost": 1.5, "max_attempts": 3,
    }  # fmt: skip
    return NewTask(**facts | changes)


def told(task_id: str, what: str = "succeeded") -> TaskEvent:
    """A worker's event; id and time are the database's business."""
    return TaskEvent(
        event_id="?",
        task_id=task_id,
        event=what,
        at=0,
        user_id="ana",
        family="sd15",
        model="pocket",
        shape="128x128",
        images=1,
    )


def picture(task_id: str, index: int = 0) -> ImageRow:
    """A picture of a task."""
    return ImageRow(
        task_id, index, f"{task_id}/{index}.png", "image/png", 12_345, 128, 128, 7 + index, "ab" * 32, {"text": TEXT}
    )


def end(row: TaskRow, state: State = State.SUCCEEDED, **changes: Any) -> End:
    """A worker's word about a task that it claimed."""
    assert row.claim_token is not None
    facts: dict[str, Any] = {"event": told(row.id, state.value)}
    if state is State.SUCCEEDED:
        facts["images"] = [picture(row.id)]
    return End(row.id, row.claim_token, state, **facts | changes)


def tokens(rows: Collection[TaskRow]) -> dict[str, str]:
    """The claims of rows."""
    return {row.id: row.claim_token for row in rows if row.claim_token is not None}


async def claim(claims: Claims, *ids: str, worker: str = "w1", lease_s: float = 15) -> list[TaskRow]:
    """Claim tasks that must all be free."""
    rows = await claims.claim(ids, worker, lease_s)
    assert [row.id for row in rows] == sorted(ids)
    return rows


async def shift(database: Database, task_id: str, **columns: int) -> None:
    """Let time pass for one task: move its dates (milliseconds, relative to what they are)."""
    changed = {tasks.c[name]: tasks.c[name] + by for name, by in columns.items()}
    await database.write(
        lambda connection: connection.execute(update(tasks).where(tasks.c.id == task_id).values(changed)).rowcount
    )


async def force(database: Database, task_id: str, values: Mapping[str, Any]) -> None:
    """Put a row into a state that takes long to reach."""
    await database.write(
        lambda connection: connection.execute(update(tasks).where(tasks.c.id == task_id).values(dict(values))).rowcount
    )


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """The statements sent to the database meanwhile, without BEGIN and COMMIT."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            sent.append(statement)

    engines = [engine.sync_engine for engine in database.engines]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    yield sent
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
