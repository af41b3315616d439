"""The hot queries use their index, whatever else waits in the table: shown by the plans of both databases."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.engine.interfaces import CacheStats

from streamapp.db import Claims, Database, Delivery, Produced, State, Tasks
from streamapp.db.schema import outbox, tasks
from streamapp.db.submissions import _values
from tests.db.support import end, new

ROWS = 3_000
Operation = Callable[["Plans"], Awaitable[Any]]


class Plans:
    """A filled database and its three sides."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tasks, self.claims, self.delivery = Tasks(database), Claims(database), Delivery(database)

    async def row(self, number: int = 77) -> Any:
        row = await self.tasks.get(f"t{number:05}")
        assert row is not None
        return row


@pytest.fixture
async def filled(database: Database) -> Plans:
    """A few thousand tasks, most of them queued and produced, as a long queue is."""

    def fill(connection: Connection) -> None:
        rows = []
        for i in range(ROWS):
            values = _values(
                new(f"t{i:05}", user_id=f"user-{i % 50}", priority=i % 4, deadline_ms=i + 1), 1_000_000 + i
            )
            values["produce_at"] = None if i % 10 else 1_000_000
            values["state"] = list(State)[i % 6 if i % 3 == 0 else 0].value
            values["lease_until"] = 1_000_000 if values["state"] == "running" else None
            rows.append(values)
        connection.execute(insert(tasks), rows)
        connection.execute(insert(outbox), [{"key": f"t{i:05}", "body": "{}"} for i in range(ROWS)])

    await database.write(fill)
    analyse = "ANALYZE" if database.sqlite else "ANALYZE TABLE tasks, outbox"
    await database.write(lambda connection: connection.execute(text(analyse)).close())
    return Plans(database)


async def plans(filled: Plans, operation: Operation) -> list[tuple[str, str]]:
    """Each statement of an operation with its plan: index names, and the words for walks and sorts."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not many and statement.startswith(("SELECT", "UPDATE", "DELETE")):
            sent.append((statement, parameters))

    engines = [engine.sync_engine for engine in filled.database.engines]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    await operation(filled)
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)

    explain = "EXPLAIN QUERY PLAN " if filled.database.sqlite else "EXPLAIN "

    def explained(connection: Connection) -> list[tuple[str, str]]:
        return [
            (
                statement,
                "\n".join(str(tuple(row)) for row in connection.exec_driver_sql(explain + statement, parameters)),
            )
            for statement, parameters in sent
        ]

    return await filled.database.read(explained)


async def claim_some(f: Plans) -> None:
    await f.claims.claim([f"t{i:05}" for i in range(0, 60, 2)], "w1", 15)


async def hand_back(f: Plans) -> None:
    rows = await f.claims.claim([f"t{i:05}" for i in range(1, 300)], "w1", 15)
    await f.claims.hand_back({row.id: row.claim_token or "" for row in rows})


async def finish_some(f: Plans) -> None:
    rows = await f.claims.claim([f"t{i:05}" for i in range(60)], "w1", 15)
    tokens = {row.id: row.claim_token or "" for row in rows}
    await f.claims.renew(tokens, 15)
    await f.claims.beat({task_id: (token, 0.5) for task_id, token in tokens.items()})
    await f.claims.finish([end(row) for row in rows])


BY_KEY = "pk"
STATE_ID = "ix_tasks_state_id"
QUEUE = "ix_tasks_state_family_priority_submitted_at_model"

#: SQLite may seek an id through the index that has it: as good as the key, one seek per id.
SEEK = "USING INDEX ix_tasks_state_id (state=? AND id=?)"
SEEK_BY_KEY = "USING INDEX sqlite_autoindex_tasks_1 (id=?)"

CASES: dict[str, tuple[Operation, set[str]]] = {
    "claim": (claim_some, {BY_KEY}),
    "hand back": (hand_back, {BY_KEY}),
    "renew, beat, finish": (finish_some, {BY_KEY}),
    "glimpse": (lambda f: f.claims.glimpse([f"t{i:05}" for i in range(100)]), {BY_KEY}),
    "watch": (lambda f: f.tasks.watch([f"t{i:05}" for i in range(100)]), {BY_KEY}),
    "expire": (lambda f: f.claims.expire([f"t{i:05}" for i in range(100)]), {BY_KEY}),
    "mark produced": (
        lambda f: f.delivery.mark_produced([Produced(f"t{i:05}", "x", 0, i) for i in range(50)]),
        {BY_KEY},
    ),
    "due": (lambda f: f.delivery.due(20), {"ix_tasks_priority_produce_at"}),
    "events": (lambda f: f.delivery.events(50), {BY_KEY}),
    "events sent": (lambda f: f.delivery.mark_events_sent(range(1, 50)), {BY_KEY}),
    "lost": (lambda f: f.delivery.lost_candidates("t01000", 50, 1), {STATE_ID}),
    "overdue": (lambda f: f.delivery.expire_overdue(5), {"ix_tasks_state_deadline_at", BY_KEY}),
    "page of a user": (lambda f: f.tasks.page(user_id="user-3", limit=20), {"ix_tasks_user_id_id"}),
    "page by state": (lambda f: f.tasks.page(state=State.FAILED, limit=20), {STATE_ID}),
    "page": (lambda f: f.tasks.page(limit=20), {BY_KEY}),
    "queued": (lambda f: f.tasks.queued(100), {"any of state"}),
    "counts": (lambda f: f.tasks.counts(), {QUEUE}),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_hot_query_uses_its_index(name: str, filled: Plans) -> None:
    operation, wanted = CASES[name]
    found = await plans(filled, operation)
    assert found
    for statement, plan in found:
        used = indices(plan.replace(SEEK, SEEK_BY_KEY), sqlite=filled.database.sqlite)
        if "any of state" in wanted:
            assert all(index.startswith("ix_tasks_state") for index in used), (statement, plan)
        else:
            assert used <= wanted, (statement, plan)
        assert used, (statement, plan)
        assert not whole_walk(plan, name, sqlite=filled.database.sqlite), (statement, plan)


async def test_a_position_is_counted_in_the_index_alone(filled: Plans) -> None:
    row = await filled.row(3001 % ROWS)

    async def ask(f: Plans) -> None:
        await f.tasks.position(row)

    found = [item for item in await plans(filled, ask) if "tasks" in item[0]]
    assert found
    for statement, plan in found:
        assert indices(plan, sqlite=filled.database.sqlite) == {QUEUE}, (statement, plan)
        assert ("COVERING INDEX" if filled.database.sqlite else "Using index") in plan, (statement, plan)


async def test_an_idempotency_key_is_found_by_its_index(filled: Plans) -> None:
    async def again(f: Plans) -> None:
        await f.tasks.insert(new("x", idempotency_key="k"))

    found = [item for item in await plans(filled, again) if "FROM tasks" in item[0]]
    assert [indices(plan, sqlite=filled.database.sqlite) for _, plan in found] == [{"uq_tasks_user_id_idempotency_key"}]


def indices(plan: str, *, sqlite: bool) -> set[str]:
    """Names of the indices of a plan; the primary key is ``pk``."""
    if sqlite:
        named = set(re.findall(r"(?:INDEX|PRIMARY KEY) (\w+)", plan)) - {"id", "task_id"}
        keyed = {BY_KEY} if "INTEGER PRIMARY KEY" in plan or re.search(r"SCAN outbox", plan) else set()
        return {unique(name) for name in named} - {"rowid"} | keyed
    return {BY_KEY if name == "PRIMARY" else name for name in re.findall(r"'(PRIMARY|(?:ix|uq)_\w+)', '\d+'", plan)}


def unique(name: str) -> str:
    """SQLite's own names for the indices behind keys."""
    return {"sqlite_autoindex_tasks_1": BY_KEY, "sqlite_autoindex_tasks_2": "uq_tasks_user_id_idempotency_key"}.get(
        name, name
    )


def whole_walk(plan: str, name: str, *, sqlite: bool) -> bool:
    """Whether a table is read whole or a result sorted, where an index in order and a limit do."""
    if name == "counts":
        return False
    if sqlite:
        tables = re.findall(r"SCAN tasks(?! USING)", plan)
        return bool(tables) or (name in {"due", "page", "page by state", "page of a user"} and "TEMP B-TREE" in plan)
    sorts = name in {"due", "page", "page by state", "page of a user"} and "filesort" in plan
    return sorts or "'ALL', None, None, None, None, '" + str(ROWS) in plan


# Not the figures: they are taken at most twice a second.
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"queued", "counts"}))
async def test_a_hot_statement_is_compiled_once(name: str, filled: Plans) -> None:
    operation, _ = CASES[name]
    missed: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if context.compiled is not None and context.cache_hit is not CacheStats.CACHE_HIT:
            missed.append(statement)

    await operation(filled)
    engines = [engine.sync_engine for engine in filled.database.engines]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    await operation(filled)
    await operation(filled)
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
    # The second time there may be other rows, and so another statement; the third time there is nothing new.
    assert len(missed) <= 2, missed
    assert not any(statement.startswith("SELECT") for statement in missed), missed
