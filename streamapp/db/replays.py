"""Ended tasks without a result, queued again under their old ids."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from sqlalchemy import Connection, update

from streamapp.db.claims import HISTORY
from streamapp.db.endings import each, lock_rows, update_tasks
from streamapp.db.rows import TaskRow, dump
from streamapp.db.schema import dead_letters, tasks
from streamapp.db.states import ENDED, State, may

REPLAYED, DROPPED = "replayed", "dropped"
#: What may be replayed when nobody says otherwise: everything that ended without a result.
WITHOUT_RESULT = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})

#: What became of one task: queued again, no such task, or left as it is, in the state it has.
Outcome = Literal["replayed", "missing", "dropped"] | State


def replay(
    connection: Connection,
    ids: Collection[str],
    *,
    states: Collection[State] = WITHOUT_RESULT,
    dropped: bool = True,
    dry_run: bool = False,
) -> dict[str, Outcome]:
    """Queue those of ``ids`` that ended in one of ``states``: attempts from 0, the deadline counted from now.

    What happened before stays in the history. Returns the outcome by task; with ``dry_run`` nothing is written, and
    without ``dropped`` what was dropped from the dead letters stays as it is.
    """
    rows, now = lock_rows(connection, ids)
    left = set() if dropped else {i for i, row in rows.items() if was_dropped(row)}
    again = {i: row for i, row in rows.items() if i not in left and row.state in states and replayable(row)}
    if again and not dry_run:
        _queue(connection, again, now)
    outcomes: dict[str, Outcome] = {i: row.state for i, row in rows.items()}
    for i in (*again, *left):
        outcomes[i] = "replayed" if i in again else "dropped"
    return {i: outcomes.get(i, "missing") for i in ids}


def replayable(row: TaskRow) -> bool:
    """Whether an ended task has no result."""
    return row.state in ENDED and may(row.state, State.QUEUED)


def was_dropped(row: TaskRow) -> bool:
    """Whether somebody closed this task's letter for good, and nobody asked for it by name since."""
    return row.state is State.FAILED and bool(row.history) and row.history[-1].get("code") == DROPPED


def _queue(connection: Connection, again: dict[str, TaskRow], now: int) -> None:
    """Write locked rows back to the queue and close their letters."""
    c = tasks.c
    values: dict[Any, Any] = {
        c.state: State.QUEUED.value,
        c.attempts: 0,
        c.claim_token: None,
        c.claimed_by: None,
        c.cancel_requested: 0,
        c.progress: 0.0,
        c.error: None,
        c.timings: "{}",
        c.started_at: None,
        c.ended_at: None,
        c.not_before: None,
        c.deadline_at: each(c.deadline_at, {i: _deadline(row, now) for i, row in again.items()}),
        c.history: each(c.history, {i: dump(_history(row, now)) for i, row in again.items()}),
        c.produce_at: now,
        c.version: c.version + 1,
    }
    connection.execute(update_tasks(again).where(c.state.in_(sorted(WITHOUT_RESULT))).values(values))
    letter = dead_letters.c
    closed = update(dead_letters).where(letter.id.in_(sorted(again)), letter.state == "open")
    connection.execute(closed.values({letter.state: REPLAYED, letter.ended_at: now}))


def failures(row: TaskRow) -> list[dict[str, Any]]:
    """Every failure of a task that its row remembers, the one that ended it last."""
    if row.error is None:
        return list(row.history)
    last = {"attempt": row.attempts, "worker_id": row.claimed_by, "at": row.ended_at, **row.error}
    return [*row.history, last]


def _history(row: TaskRow, now: int) -> list[dict[str, Any]]:
    note = {"code": REPLAYED, "message": f"queued again after it had ended as {row.state.value}", "at": now}
    return [*failures(row), note][-HISTORY:]


def _deadline(row: TaskRow, now: int) -> int | None:
    """The span that the submit gave, from now on."""
    if row.deadline_at is None:
        return None
    starts = [int(entry["at"]) for entry in row.history if entry.get("code") == REPLAYED]
    return now + row.deadline_at - max([row.submitted_at, *starts])
