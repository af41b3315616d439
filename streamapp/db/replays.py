"""Ended tasks without a result, queued again under their old ids."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, select, update

from streamapp.db.claims import HISTORY
from streamapp.db.endings import each, lock_rows, update_tasks
from streamapp.db.rows import EVICTED, TaskRow, dump
from streamapp.db.schema import dead_letters, loras, models, tasks
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

    Those that name weights which are not here wait for them first, as when they were submitted.

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
    """Write locked rows back to the queue, or to the wait for their weights, and close their letters."""
    absent = _absent(connection, again.values())
    for part, state in ((again.keys() - absent, State.QUEUED), (absent, State.FETCHING)):
        if part:
            _write(connection, {i: again[i] for i in part}, now, state)
    letter = dead_letters.c
    closed = update(dead_letters).where(letter.id.in_(sorted(again)), letter.state == "open")
    connection.execute(closed.values({letter.state: REPLAYED, letter.ended_at: now}))


def _absent(connection: Connection, rows: Collection[TaskRow]) -> set[str]:
    """Ids of the tasks that name weights which have to be fetched (again) first."""
    away: set[tuple[str, str]] = set()
    for table in (models, loras):
        c = table.c
        named = {name for row in rows for name in (row.params.model, *row.params.added)}
        # The newest version comes last and has the last word.
        found = select(c.name, c.traits).where(c.name.in_(sorted(named))).order_by(c.added_at, c.version)
        newest = {row.name: orjson.loads(row.traits) for row in connection.execute(found)}
        away |= {(table.name, name) for name, traits in newest.items() if traits.get(EVICTED)}
    return {
        row.id
        for row in rows
        if ("models", row.params.model) in away or any(("loras", name) in away for name in row.params.added)
    }


def _write(connection: Connection, again: dict[str, TaskRow], now: int, state: State) -> None:
    c = tasks.c
    values: dict[Any, Any] = {
        c.state: state.value,
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
        # What waits for weights is produced by whoever fetches them.
        c.produce_at: now if state is State.QUEUED else None,
        c.version: c.version + 1,
    }
    connection.execute(update_tasks(again).where(c.state.in_(sorted(WITHOUT_RESULT))).values(values))


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
