"""Everything accepted reaches the broker: at once when it can, in order and never lost when it cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamapp.db import Claims, Database, Delivery, Tasks
from streamapp.errors import Unavailable
from streamapp.outbox import BATCH, HOT_ROWS, Outbox
from streamapp.records import ModelLoad, TaskMessage, WorkerStatus, decode
from tests.db.support import claim, end, new, shift
from tests.outbox.conftest import Broker, until

Make = Callable[..., Outbox]
HOUR = 3_600_000


async def test_a_new_row_is_produced_at_once_and_marked(tasks: Tasks, make: Make, broker: Broker) -> None:
    outbox = make()
    outbox.start()
    row, _ = await tasks.insert(new("a", produce_delay_ms=HOUR))
    outbox.offer(row)

    async def marked() -> bool:
        found = await tasks.get("a")
        return found is not None and found.produce_at is None

    await until(marked)
    found = await tasks.get("a")
    assert found is not None
    assert (found.topic, found.offset) == ("sd15_tasks", 0)
    topic, partition, key, value = broker.sent[0]
    message = decode(TaskMessage, value)
    assert (topic, partition, key) == ("sd15_tasks", found.partition, "a")
    assert (message.task_id, message.params, message.cost) == ("a", row.params, 1.5)


async def test_urgent_work_has_its_own_topic_and_goes_first(tasks: Tasks, make: Make, broker: Broker) -> None:
    outbox = make()
    for task_id, priority in (("a", 3), ("b", 2), ("c", 0), ("d", 1)):
        row, _ = await tasks.insert(new(task_id, priority=priority, produce_delay_ms=HOUR))
        outbox.offer(row)
    outbox.start()

    async def sent() -> bool:
        return len(broker.keys()) == 4

    await until(sent)
    urgent, normal = "sd15_tasks_urgent", "sd15_tasks"
    assert [(key, topic) for topic, _, key, _ in broker.sent if topic != "task_events"] == [
        ("c", urgent), ("d", urgent), ("b", normal), ("a", normal),
    ]  # fmt: skip


async def test_the_sweeper_produces_by_priority_and_age_what_nobody_offered(
    tasks: Tasks, database: Database, make: Make, broker: Broker
) -> None:
    for age, (task_id, priority) in enumerate((("young", 2), ("old", 2), ("batch", 3), ("urgent", 1))):
        await tasks.insert(new(task_id, priority=priority))
        await shift(database, task_id, submitted_at=-1_000 * age, produce_at=-1_000 * age)
    await make().sweep()
    assert broker.keys() == ["urgent", "old", "young", "batch"]
    await make().sweep()
    assert len(broker.keys()) == 4


async def test_rows_that_are_not_due_yet_wait(tasks: Tasks, make: Make, broker: Broker) -> None:
    await tasks.insert(new("a", produce_delay_ms=HOUR))
    await make().sweep()
    assert broker.keys() == []


async def test_while_the_broker_is_down_nothing_is_lost_and_afterwards_the_order_holds(
    tasks: Tasks, make: Make, broker: Broker
) -> None:
    outbox = make()
    outbox.start()
    broker.down = True
    for number in range(20):
        row, _ = await tasks.insert(new(f"t{number:02}", priority=2 if number % 2 else 0, produce_delay_ms=100))
        outbox.offer(row)

    async def tried() -> bool:
        return broker.refused >= 20

    await until(tried)
    with pytest.raises(Unavailable):
        await make().sweep()
    assert broker.sent == []
    broker.down = False

    async def arrived() -> bool:
        return set(broker.keys()) == {f"t{number:02}" for number in range(20)}

    await until(arrived)
    expected = [f"t{number:02}" for number in (*range(0, 20, 2), *range(1, 20, 2))]
    assert list(dict.fromkeys(broker.keys())) == expected


async def test_new_rows_do_not_overtake_older_ones_that_wait_for_the_sweeper(
    tasks: Tasks, make: Make, broker: Broker
) -> None:
    outbox = make()
    broker.down = True
    await tasks.insert(new("old"))
    with pytest.raises(Unavailable):
        await outbox.sweep()
    broker.down = False
    young, _ = await tasks.insert(new("young"))
    outbox.offer(young)
    outbox.start()

    async def both() -> bool:
        return len(broker.keys()) >= 2

    await until(both)
    assert broker.keys() == ["old", "young"]


async def test_events_follow_on_their_topic_once_each(tasks: Tasks, make: Make, broker: Broker) -> None:
    await tasks.insert(new("a"))
    outbox = make()
    await outbox.sweep()
    await outbox.sweep()
    assert broker.keys(events=True) == ["a"]


async def test_more_than_one_batch_is_swept_in_one_go(tasks: Tasks, make: Make, broker: Broker) -> None:
    many = BATCH + 20
    for number in range(many):
        await tasks.insert(new(f"t{number:04}"))
    await make().sweep()
    assert len(broker.keys()) == many
    assert len(broker.keys(events=True)) == many


async def test_one_process_sweeps(delivery: Delivery, tasks: Tasks, make: Make, broker: Broker) -> None:
    assert await delivery.lease("outbox", "another", 60)
    outbox = make()
    await tasks.insert(new("a"))
    for _ in range(BATCH):
        await tasks.insert(new(f"t{_:04}"))
    with pytest.raises(Unavailable):  # it notices between two batches that another one is at it
        await outbox.sweep()
    await delivery.release("outbox", "another")
    await outbox.sweep()
    assert len(set(broker.keys())) == BATCH + 1


async def test_a_closed_sweeper_is_replaced_at_once(
    delivery: Delivery, tasks: Tasks, make: Make, broker: Broker
) -> None:
    await tasks.insert(new("a"))
    first = make()
    first.start()

    async def swept() -> bool:
        return broker.keys() == ["a"]

    await until(swept)
    assert not await delivery.lease("outbox", "somebody", 1)
    await first.close()
    assert await delivery.lease("outbox", "somebody", 1)


async def test_a_task_past_its_deadline_ends_instead_of_being_produced(
    tasks: Tasks, database: Database, make: Make, broker: Broker
) -> None:
    await tasks.insert(new("late", deadline_ms=10))
    await shift(database, "late", deadline_at=-1_000)
    await make().sweep()
    row = await tasks.get("late")
    assert row is not None
    assert row.state.value == "expired"
    assert broker.keys() == []


async def test_a_task_that_ended_before_it_was_produced_is_not_sent_by_the_sweeper(
    tasks: Tasks, database: Database, make: Make, broker: Broker
) -> None:
    await tasks.insert(new("a"))
    claims = Claims(database)
    [row] = await claim(claims, "a")
    await claims.finish([end(row)])
    await make().sweep()
    assert broker.keys() == []
    assert broker.keys(events=True) == ["a", "a"]


async def test_the_partition_is_that_of_the_worker_with_the_least_to_do(
    tasks: Tasks, make: Make, broker: Broker
) -> None:
    def status(name: str, partition: int, seconds: float) -> WorkerStatus:
        return WorkerStatus(
            worker_id=name, host="h", pid=1, port=1, role="worker", families=("sd15",), device="cpu", engine="ready",
            state="running", started_at=0, at=1, partitions={"sd15_tasks": (partition,)},
            backlog={"pocket": ModelLoad(jobs=1, seconds=seconds)}, checkpoints={"pocket": "vram"},
        )  # fmt: skip

    live = [status("busy", 0, 60.0), status("free", 3, 0.5)]
    await tasks.insert(new("a"))
    await make(statuses=lambda: live).sweep()
    assert broker.sent[0][1] == 3


async def test_what_is_offered_above_the_bound_is_left_to_the_sweeper(tasks: Tasks, make: Make) -> None:
    outbox = make()
    row, _ = await tasks.insert(new("a", produce_delay_ms=HOUR))
    outbox._hot = [(0, 0, str(number), row) for number in range(HOT_ROWS)]
    outbox.offer(row)
    assert len(outbox._hot) == HOT_ROWS
