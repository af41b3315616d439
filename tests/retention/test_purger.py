"""Ended tasks go after their time, with everything that hangs on them; whatever else there is stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Table, func, select, update

from streamapp.db import Claims, Database, Delivery, InputRow, Inputs, Retention, State, TaskRow, Tasks
from streamapp.db.schema import callbacks, dead_letters, images, inputs
from streamapp.db.schema import tasks as table
from streamapp.errors import Unavailable
from streamapp.ids import first_id_at, new_task_id
from streamapp.retention import Purger
from streamapp.storage import LocalStorage, image_key, input_key
from tests.db.support import claim, end, new, params, picture
from tests.retention.conftest import KEEP

OLD, YOUNG = KEEP * 1000 + 60_000, KEEP * 1000 - 60_000


async def aged(
    database: Database, task: Tasks, claims: Claims, storage: LocalStorage, age_ms: float, **changes: Any
) -> TaskRow:
    """A task that succeeded with two stored pictures so many milliseconds ago."""
    state = changes.pop("state", State.SUCCEEDED)
    now = await database.now() - int(age_ms)
    task_id = new_task_id(now - 5_000)
    await task.insert(new(task_id, params=params(n=2), **changes))
    [row] = await claim(claims, task_id)
    pictures = [replace(picture(task_id, index), key=image_key(task_id, index)) for index in (0, 1)]
    for image in pictures:
        await storage.put(image.key, b"picture", "image/png")
    await claims.finish([end(row, state, images=pictures if state is State.SUCCEEDED else ())])
    await database.write(
        lambda connection: connection.execute(update(table).where(table.c.id == task_id).values(ended_at=now))
    )
    return row


async def count(database: Database, rows: Table) -> int:
    """How many rows a table has."""
    counted = select(func.count()).select_from(rows)
    return await database.read(lambda connection: connection.scalar(counted) or 0)


async def stored(storage: LocalStorage, task_id: str) -> list[bool]:
    """Which of the two pictures are there."""
    return [await storage.head(image_key(task_id, index)) is not None for index in (0, 1)]


async def test_an_old_task_goes_with_its_files_and_a_young_one_stays(
    database: Database, tasks: Tasks, claims: Claims, storage: LocalStorage, purger: Purger
) -> None:
    old = await aged(database, tasks, claims, storage, OLD)
    young = await aged(database, tasks, claims, storage, YOUNG)
    await tasks.insert(new(new_task_id(await database.now() - 10 * int(OLD))))  # waits since long
    assert await purger.sweep() == 1
    assert await tasks.get(old.id) is None
    assert await stored(storage, old.id) == [False, False]
    assert await stored(storage, young.id) == [True, True]
    assert len((await tasks.images([young.id]))[young.id]) == 2
    assert sorted(row.state for row in await tasks.page()) == [State.QUEUED, State.SUCCEEDED]
    assert await purger.sweep() == 0


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_pictures_that_no_row_names_go_too(
    state: State, database: Database, tasks: Tasks, claims: Claims, storage: LocalStorage, purger: Purger
) -> None:
    """Stored, and then the task ended otherwise; its letter goes with it."""
    row = await aged(database, tasks, claims, storage, OLD, state=state)
    assert await stored(storage, row.id) == [True, True]
    assert await purger.sweep() == 1
    assert await stored(storage, row.id) == [False, False]
    counts = {each.name: await count(database, each) for each in (table, images, callbacks, dead_letters)}
    assert set(counts.values()) == {0}, counts


async def test_a_task_waits_for_its_webhook(
    database: Database, tasks: Tasks, claims: Claims, delivery: Delivery, storage: LocalStorage, purger: Purger
) -> None:
    row = await aged(database, tasks, claims, storage, OLD, callback_url="https://example.org/hook")
    assert await purger.sweep() == 0
    [event_id] = await database.read(
        lambda connection: list(connection.scalars(select(callbacks.c.event_id).where(callbacks.c.task_id == row.id)))
    )
    await database.write(
        lambda connection: connection.execute(
            update(callbacks).where(callbacks.c.event_id == event_id).values(next_at=None, ended_at=1)
        )
    )
    assert await purger.sweep() == 1
    assert await count(database, callbacks) == 0


async def test_without_a_storage_the_row_stays_so_that_the_files_are_found_later(
    database: Database,
    tasks: Tasks,
    claims: Claims,
    storage: LocalStorage,
    purger: Purger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [await aged(database, tasks, claims, storage, OLD) for _ in range(2)]
    delete = storage.delete

    async def refusing(key: str) -> None:
        if bad in key:
            raise Unavailable("the storage does not answer")
        await delete(key)

    monkeypatch.setattr(storage, "delete", refusing)
    bad = "images"
    with pytest.raises(Unavailable):
        await purger.sweep()
    assert len(await tasks.page()) == 2
    bad = rows[0].id
    assert await purger.sweep() == 1
    assert [row.id for row in await tasks.page()] == [rows[0].id]
    bad = "none"
    assert await purger.sweep() == 1


async def test_many_go_in_batches(
    database: Database,
    tasks: Tasks,
    claims: Claims,
    storage: LocalStorage,
    purger: Purger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamapp.retention.BATCH", 3)
    for _ in range(7):
        await aged(database, tasks, claims, storage, OLD)
    assert await purger.sweep() == 7
    assert await count(database, images) == 0


async def test_one_process_does_it(
    database: Database, tasks: Tasks, claims: Claims, delivery: Delivery, storage: LocalStorage, purger: Purger
) -> None:
    await aged(database, tasks, claims, storage, OLD)
    await delivery.lease("retention", "another", 30)
    assert await purger.sweep() == 0
    await delivery.release("retention", "another")
    assert await purger.sweep() == 1


async def test_a_task_that_was_replayed_meanwhile_is_not_forgotten(
    database: Database, tasks: Tasks, claims: Claims, storage: LocalStorage
) -> None:
    row = await aged(database, tasks, claims, storage, OLD, state=State.CANCELLED)
    retention = Retention(database)
    [past] = await retention.ended_before(State.CANCELLED, KEEP, "", 10)
    assert await tasks.replay(row.id)
    assert await retention.forget([past.task_id], KEEP) == 0
    assert await tasks.get(row.id) is not None


def test_ids_sort_around_the_bound_of_a_moment() -> None:
    for moment in (0, 1_766_000_000_123, 1_766_015_999_999, 1_766_016_000_000):
        assert new_task_id(moment - 1 if moment else 0) < first_id_at(moment + 1) < new_task_id(moment + 1)


async def sent(database: Database, storage: LocalStorage, letter: str, age_ms: float) -> str:
    """A picture that was last used so many milliseconds ago."""
    digest, known = letter * 64, Inputs(database)
    await known.keep(InputRow(digest, "image/png", 7, 8, 8))
    await storage.put(input_key(digest), b"picture", "image/png")
    then = await database.now() - int(age_ms)
    await database.write(
        lambda connection: connection.execute(update(inputs).where(inputs.c.digest == digest).values(used_at=then))
    )
    return digest


async def test_a_picture_that_was_sent_goes_when_nobody_used_it_for_as_long(
    database: Database, storage: LocalStorage, purger: Purger
) -> None:
    old = await sent(database, storage, "a", OLD)
    young = await sent(database, storage, "b", YOUNG)
    used = await sent(database, storage, "c", OLD)
    assert await Inputs(database).use(used) == InputRow(used, "image/png", 7, 8, 8)
    await purger.sweep()
    assert [await storage.head(input_key(each)) is not None for each in (old, young, used)] == [False, True, True]
    assert await Inputs(database).use(old) is None


async def test_a_picture_stays_while_a_task_of_its_time_has_not_ended(
    database: Database, tasks: Tasks, storage: LocalStorage, purger: Purger
) -> None:
    await tasks.insert(new(new_task_id(await database.now())))
    await database.write(
        lambda connection: connection.execute(update(table).values(submitted_at=table.c.submitted_at - int(OLD)))
    )
    digest = await sent(database, storage, "a", OLD)
    await purger.sweep()
    assert await storage.head(input_key(digest)) is not None


async def test_the_same_picture_is_noted_once(database: Database) -> None:
    row = InputRow("d" * 64, "image/png", 7, 8, 8)
    for _ in range(2):
        await Inputs(database).keep(row)
    assert await count(database, inputs) == 1
    assert await Inputs(database).use(row.digest) == row
