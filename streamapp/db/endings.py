"""How tasks change hands inside a transaction: lock, decide, compare-and-set.

Everything that ends a task goes through :func:`write_endings`, so an end always comes with its event and its callback.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Row,
    Select,
    Update,
    bindparam,
    case,
    insert,
    literal,
    literal_column,
    select,
    update,
)

from streamapp.db.events import ended_without_result, event_id, write_callbacks, write_events, write_letters
from streamapp.db.rows import ImageRow, TaskRow, dump, task_row
from streamapp.db.schema import images, now_ms, tasks
from streamapp.db.states import State, sources
from streamapp.records import TaskEvent

T = TypeVar("T")

#: Rows of one UPDATE with a CASE: the database compares every row with every branch.
CHUNK = 100
#: What may stand in a statement as it is: numbers, and ids of letters and digits.
NUMBERS: Final = (int, float)
PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
#: For statements that hold values: each is said once, and would push others out of the cache.
UNCACHED: Final = {"compiled_cache": None}


class Moved(RuntimeError):
    """A locked row changed under its lock: the transaction is rolled back; never seen with a sound database."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One task's end, decided; ``version`` is the locked row's."""

    task_id: str
    version: int
    state: State
    event: TaskEvent
    callback_url: str | None
    images: Sequence[ImageRow] = ()
    error: Mapping[str, Any] | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    token: str | None = None


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """``items`` in pieces of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def update_tasks(ids: Collection[str] | BindParameter[Any]) -> Update:
    """An UPDATE of rows by id. The hint keeps MySQL from walking (and locking) a state index instead of the key."""
    hinted = update(tasks).with_hint("FORCE INDEX (PRIMARY)", dialect_name="mysql")
    return hinted.where(tasks.c.id.in_(ids if isinstance(ids, BindParameter) else sorted(ids)))


def along(statement: Select[Any], index: str) -> Select[Any]:
    """Have MySQL walk this index of ``tasks``: by its statistics it may prefer the whole key, or a sort."""
    return statement.with_hint(tasks, f"FORCE INDEX (ix_tasks_{index})", dialect_name="mysql")


#: The ids of a statement that is built once: building one anew costs more than the database takes to run it.
#: Names of such parameters must differ from the columns', which an UPDATE would take for values to set.
IDS: Final[BindParameter[Any]] = bindparam("with_ids", expanding=True)


def _locked(*columns: Any) -> Select[Any]:
    """Rows by id, sorted and locked (SQLite's writer holds the lock of the whole file already)."""
    hinted = select(*columns, now_ms().label("now")).with_hint(tasks, "FORCE INDEX (PRIMARY)", dialect_name="mysql")
    return hinted.where(tasks.c.id.in_(IDS)).order_by(tasks.c.id).with_for_update()


_ROWS: Final = _locked(tasks)
_FACTS: Final = _locked(
    *(tasks.c[name] for name in ("id", "state", "claim_token", "cancel_requested", "version", "callback_url"))
)


def lock_rows(connection: Connection, ids: Collection[str]) -> tuple[dict[str, TaskRow], int]:
    """The rows of ``ids``, locked, and the database's clock."""
    found = connection.execute(_ROWS, {"with_ids": sorted(ids)}).all() if ids else []
    return {row.id: task_row(row) for row in found}, found[0].now if found else 0


def lock_facts(connection: Connection, ids: Collection[str]) -> tuple[dict[str, Row[Any]], int]:
    """The few columns that a decision about ``ids`` needs, locked, and the database's clock."""
    found = connection.execute(_FACTS, {"with_ids": sorted(ids)}).all() if ids else []
    return {row.id: row for row in found}, found[0].now if found else 0


def each(column: ColumnElement[Any], values: Mapping[str, Any], others: ColumnElement[Any] | None = None) -> Any:
    """A value by task id as one expression: a plain value where all are equal, else a CASE.

    ``others`` is for the rows that are not in ``values``. Without it the commonest value needs no branch, which
    halves the cost of most statements: building and sending parameters is what a bulk UPDATE spends its time on.
    """
    if others is None:
        common, count = Counter(values.values()).most_common(1)[0]
        if count == len(values):
            return common
        values = {task_id: value for task_id, value in values.items() if value != common}
        if all(type(value) in NUMBERS for value in (common, *values.values())) and all(map(PLAIN.match, values)):
            # Naming and sending hundreds of parameters takes many times what the database takes to read the numbers.
            numbers = " ".join(f"WHEN '{task_id}' THEN {value!r}" for task_id, value in sorted(values.items()))
            return literal_column(f"CASE tasks.id {numbers} ELSE {common!r} END", column.type)
        others = literal(common, column.type)
    # Not literal(), which looks for a type of its own first: of hundreds of values that is most of the work.
    branches = {i: BindParameter(None, value, column.type, unique=True) for i, value in sorted(values.items())}
    return case(branches, value=tasks.c.id, else_=others)


def write_endings(connection: Connection, endings: Iterable[Ending], now: int) -> None:
    """End locked rows: state, pictures, letters, events, callbacks; :class:`Moved` if a row is not as it was locked."""
    todo = sorted(endings, key=lambda ending: ending.task_id)
    for part in chunks(todo):
        _end_rows(connection, part, now)
    pictures = [_image_values(image) for ending in todo for image in ending.images]
    if pictures:
        connection.execute(insert(images), pictures)
    failed = [
        (ending.task_id, ending.event.user_id, _reason(ending)) for ending in todo if ending.state is State.FAILED
    ]
    write_letters(connection, failed, now)
    told = [(ending.callback_url, _stamped(ending, now)) for ending in todo]
    write_events(connection, (event for _, event in told))
    write_callbacks(connection, ((url, event) for url, event in told if url))


def _reason(ending: Ending) -> str:
    """Why a failed task is a dead letter."""
    error = ending.error or {}
    return str(error.get("reason") or error.get("code") or "failed")


def _stamped(ending: Ending, now: int) -> TaskEvent:
    """The event with what only the database knows: its time and its number."""
    return ending.event.model_copy(update={"at": now, "event_id": event_id(ending.task_id, ending.version + 1)})


def _end_rows(connection: Connection, endings: Sequence[Ending], now: int) -> None:
    """One UPDATE for up to :data:`CHUNK` rows, compared and set by its row count."""
    c = tasks.c
    by_id = {ending.task_id: ending for ending in endings}
    done = [task_id for task_id, ending in by_id.items() if ending.state is State.SUCCEEDED]
    values: dict[Any, Any] = {
        c.state: each(c.state, {i: ending.state.value for i, ending in by_id.items()}),
        c.error: each(c.error, {i: None if e.error is None else dump(e.error) for i, e in by_id.items()}),
        c.timings: each(c.timings, {i: dump(ending.timings) for i, ending in by_id.items()}),
        # A claim that ended its own task stays in the row, so that a repeated finish is recognised.
        c.claim_token: each(c.claim_token, {i: ending.token for i, ending in by_id.items()}),
        c.ended_at: now,
        c.lease_until: None,
        c.not_before: None,
        c.produce_at: None,
        c.version: c.version + 1,
    }
    if done:
        values[c.progress] = 1.0 if len(done) == len(by_id) else each(c.progress, dict.fromkeys(done, 1.0), c.progress)
    legal = sources({ending.state for ending in endings})
    changed = connection.execute(update_tasks(by_id).where(c.state.in_(legal)).values(values)).rowcount
    if changed != len(by_id):
        raise Moved(f"{changed} of {len(by_id)} locked tasks could end")


def _image_values(image: ImageRow) -> dict[str, Any]:
    """A picture's columns."""
    return {
        "task_id": image.task_id,
        "idx": image.idx,
        "key": image.key,
        "content_type": image.content_type,
        "bytes": image.bytes,
        "width": image.width,
        "height": image.height,
        "seed": image.seed,
        "digest": image.digest,
        "recipe": dump(image.recipe),
    }


def end_rows(
    connection: Connection, rows: Iterable[TaskRow], state: State, now: int, error: Mapping[str, Any] | None = None
) -> None:
    """End locked rows that no worker finishes, in one state and for one reason."""
    write_endings(
        connection,
        [
            Ending(
                row.id,
                row.version,
                state,
                ended_without_result(row, state, now, None if error is None else str(error["code"])),
                row.callback_url,
                error=error,
                timings={"queue": round((now - row.submitted_at) / 1000, 3)},
            )
            for row in rows
        ],
        now,
    )
