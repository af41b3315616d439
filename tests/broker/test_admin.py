"""The admin port, on both brokers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamapp.broker.admin import TP, Admin, TopicSpec, open_admin
from streamapp.errors import NotFound, PartitionMismatch, Unavailable
from streamapp.settings import Settings
from tests.broker.steering import Broker

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def admin(broker: Broker) -> AsyncIterator[Admin]:
    one = broker.admin()
    await one.start()
    yield one
    await one.close()


async def test_topics_are_created_once_and_checked_after_that(admin: Admin, broker: Broker) -> None:
    specs = [TopicSpec(f"{broker.app_id}-{name}", 3, config={"retention.ms": "60000"}) for name in ("one", "two")]
    assert sorted(await admin.create_topics(specs)) == sorted(spec.name for spec in specs)
    assert await admin.create_topics(specs) == []
    names = [spec.name for spec in specs]
    assert await admin.partitions([*names, "missing"]) == dict.fromkeys(names, 3)
    with pytest.raises(PartitionMismatch, match="has 3 partitions, the settings ask for 4") as caught:
        await admin.create_topics([TopicSpec(names[0], 4)])
    assert caught.value.details == {"topic": names[0], "found": 3, "wanted": 4}


async def test_bounds_offsets_and_records_after_some_work(broker: Broker) -> None:
    async with broker.worker() as worker:
        await worker.send("a", "b", "c", partition=0, headers={"trace": "t"})
        await worker.receives("c")
        await worker.ack("a", "b")
        await worker.stop()
    admin = broker.admin()
    await admin.start()
    try:
        await admin.ping()
        assert await admin.bounds([broker.jobs, "missing"]) == {TP(broker.jobs, 0): (0, 3), TP(broker.jobs, 1): (0, 0)}
        assert await admin.committed(broker.app_id, [broker.jobs]) == {TP(broker.jobs, 0): 2}
        assert await admin.committed("nobody", [broker.jobs]) == {}
        found = await admin.read(broker.jobs, 0, 1, 10)
        assert [(record.offset, record.key, record.value) for record in found] == [
            (1, b"key-b", b"b"),
            (2, b"key-c", b"c"),
        ]
        assert found[0].headers == (("trace", b"t"),)
        assert found[0].timestamp > 1_600_000_000_000, "milliseconds"
        second = found[0].timestamp
        written = [record.timestamp for record in await admin.read(broker.jobs, 0, 0, 10)]
        first = min(offset for offset, at in enumerate(written) if at >= second)
        assert await admin.offsets_since([broker.jobs, "missing"], second) == {
            TP(broker.jobs, 0): first,
            TP(broker.jobs, 1): 0,
        }
        assert (await admin.offsets_since([broker.jobs], second + 3_600_000))[TP(broker.jobs, 0)] == 3
        assert len(await admin.read(broker.jobs, 0, 0, 2)) == 2
        assert await admin.read(broker.jobs, 0, 3, 10) == []
        assert await admin.read(broker.jobs, 1, 0, 10) == []
        with pytest.raises(NotFound, match="no partition 9"):
            await admin.read(broker.jobs, 9, 0, 1)
    finally:
        await admin.close()


async def test_a_broker_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    admin = open_admin(Settings(broker="kafka://127.0.0.1:1", data_dir=tmp_path))
    await admin.start()
    with pytest.raises(Unavailable, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
        await admin.ping()
    await admin.close()
