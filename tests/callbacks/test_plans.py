"""Looking for what is due walks the index of due times, however many webhooks were delivered before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text

from streamapp.db import Database, Delivery, Tasks
from streamapp.db.schema import callbacks
from tests.db.support import new

ROWS = 4_000
OPERATIONS: dict[str, Callable[[Delivery], Awaitable[Any]]] = {
    "the next one": lambda delivery: delivery.next_callback_in(),
    "a claim": lambda delivery: delivery.due_callbacks(10, 60, per_host=8, sending={"http://busy.test": 8}),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_no_walk_over_delivered_webhooks(name: str, database: Database, tasks: Tasks, delivery: Delivery) -> None:
    await tasks.insert(new("t1"))

    def fill(connection: Connection) -> None:
        row = {"task_id": "t1", "url": "http://x.test/", "body": "{}", "attempts": 1, "created_at": 1}
        due = [{"next_at": 1_000 + number if number % 100 == 0 else None} for number in range(ROWS)]
        connection.execute(insert(callbacks), [{**row, **when, "event_id": f"t1:{i}"} for i, when in enumerate(due)])
        connection.execute(text("ANALYZE" if database.sqlite else "ANALYZE TABLE callbacks")).close()

    await database.write(fill)
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "callbacks" in statement and statement.startswith("SELECT"):
            sent.append((statement, parameters))

    engines = [engine.sync_engine for engine in database.engines]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    await OPERATIONS[name](delivery)
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
    [(statement, parameters)] = sent
    explain = "EXPLAIN QUERY PLAN " if database.sqlite else "EXPLAIN "

    def explained(connection: Connection) -> str:
        return "\n".join(str(tuple(row)) for row in connection.exec_driver_sql(explain + statement, parameters))

    plan = await database.read(explained)
    assert "ix_callbacks_next_at" in plan
    assert "filesort" not in plan
    assert "TEMP B-TREE" not in plan
    assert "SCAN" not in plan
