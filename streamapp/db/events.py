"""The records that tell of a change, written in the same transaction as the change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, delete, insert

from streamapp.db.rows import NewTask, TaskRow
from streamapp.db.schema import callbacks, dead_letters, outbox
from streamapp.db.states import State
from streamapp.records import TaskEvent

#: A dead letter that nobody replayed or dropped yet.
OPEN = "open"


def event_id(task_id: str, version: int) -> str:
    """One id per change of a task: a version is written once."""
    return f"{task_id}:{version}"


def event_of(task: TaskRow | NewTask, event: str, at: int, version: int, **facts: Any) -> TaskEvent:
    """What happened to ``task``, from the row alone."""
    params = task.params
    return TaskEvent(
        event_id=event_id(task.id, version),
        task_id=task.id,
        event=event,
        at=at,
        user_id=task.user_id,
        family=task.family,
        model=task.model,
        shape=str(params.drawn),
        with_lora=bool(params.loras),
        **facts,
    )


def ended_without_result(row: TaskRow, state: State, at: int, error: str | None = None) -> TaskEvent:
    """The end of a task that nobody finished: cancelled, expired, or cancelled instead of tried again."""
    queue = {"queue": round((at - row.submitted_at) / 1000, 3)}
    return event_of(row, state.value, at, row.version + 1, worker_id=row.claimed_by, seconds=queue, error=error)


def write_events(connection: Connection, events: Iterable[TaskEvent]) -> None:
    """One bulk INSERT of outbox rows."""
    rows = [{"key": event.task_id, "body": event.encode().decode()} for event in events]
    if rows:
        connection.execute(insert(outbox), rows)


def write_callbacks(connection: Connection, called: Iterable[tuple[str, TaskEvent]]) -> None:
    """One bulk INSERT of webhooks (URL, event), due at once."""
    rows = [
        {
            "event_id": event.event_id,
            "task_id": event.task_id,
            "url": url,
            "body": event.encode().decode(),
            "attempts": 0,
            "next_at": event.at,
            "created_at": event.at,
        }
        for url, event in called
    ]
    if rows:
        connection.execute(insert(callbacks), rows)


def write_letters(connection: Connection, failed: Iterable[tuple[str, str, str]], now: int) -> None:
    """Open the letters of tasks that failed in this transaction: (task id, user id, reason) of each."""
    rows = [
        {"id": task_id, "task_id": task_id, "user_id": user, "state": OPEN, "reason": reason[:200], "at": now}
        for task_id, user, reason in failed
    ]
    if rows:
        # One that was replayed and failed again: the newest end counts.
        connection.execute(delete(dead_letters).where(dead_letters.c.id.in_([row["id"] for row in rows])))
        connection.execute(insert(dead_letters), rows)
