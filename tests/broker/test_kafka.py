"""What only Kafka can do to a worker: rebalances, and a broker that is not there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.broker.steering import Broker, Worker, eventually
from tests.servers.kafka import Kafka

pytestmark = pytest.mark.timeout(240)


async def has(*workers: Worker) -> set[str]:
    """Which of the last messages came to any of the workers."""
    return {value for worker in workers for value in worker.values if value.startswith("end")}


async def test_two_workers_and_a_kill_lose_nothing(kafka_broker: Callable[[], Awaitable[Broker]]) -> None:
    broker = await kafka_broker()
    values = [f"v-{n}" for n in range(200)]
    async with broker.worker() as first, broker.worker(wait=False) as second:
        await first.send(*values[:100], partition=0)
        await first.send(*values[100:], partition=1)
        await second.ready()
        acked: set[str] = set()
        for worker in (first, second):
            # Every second one, the later ones first: what is held lies below what is acked.
            some = worker.values[1::2][::-1]
            await worker.ack(*some)
            acked.update(some)
        await first.send("end-0", partition=0)
        await first.send("end-1", partition=1)
        await eventually(lambda: has(first, second), {"end-0", "end-1"})
        await first.kill()
        lost = [value for value in values if value not in acked]
        await second.receives(*[value for value in lost if value in first.values])
        assert set(first.values) | set(second.values) >= set(values)


async def test_a_broker_that_dies_and_comes_back_costs_nothing(
    kafka_broker: Callable[[], Awaitable[Broker]], kafka: Kafka
) -> None:
    broker = await kafka_broker()
    async with broker.worker() as worker:
        await worker.send("a", "b")
        await worker.receives("a", "b")
        kafka.kill()
        try:
            # Acked while nobody takes the commit: it is made when the broker is back, without another ack.
            await worker.ack("a", "b")
        finally:
            kafka.start()

        async def committed() -> dict[str, int]:
            # A worker whose session runs out before it has found the broker again is a new member: what was acked
            # and not committed is delivered again, and acked again, as the service does with tasks that have ended.
            if len(worker.values) > 2:
                await worker.ack("a", "b")
            return await worker.committed()

        await eventually(committed, {"0": 2})
        await worker.send("c")
        await worker.receives("c")
    assert await broker.committed() == {0: 2}


async def test_a_worker_ends_though_its_broker_is_gone(
    kafka_broker: Callable[[], Awaitable[Broker]], kafka: Kafka
) -> None:
    broker = await kafka_broker()
    async with broker.worker() as worker:
        await worker.send("a")
        await worker.receives("a")
        kafka.kill()
        try:
            await worker.ack("a")
            await worker.begin("send", items=[{"key": "k", "value": "never delivered", "partition": 0}])
            worker.terminate()
            assert await worker.wait() == 0, worker.errors()
        finally:
            kafka.start()
        assert "stopping without it" in worker.errors()
        repeated = [line for line in worker.errors().splitlines() if "Unable connect to node" in line]
        assert len(repeated) < 10, "the client's complaints are rate-limited"


async def test_a_worker_waits_for_a_broker_that_is_down_at_start(
    kafka_broker: Callable[[], Awaitable[Broker]], kafka: Kafka
) -> None:
    broker = await kafka_broker()
    kafka.kill()
    try:
        async with broker.worker(wait=False) as early, broker.worker(wait=False) as worker:
            await eventually(lambda: waits(early, worker), True)
            early.terminate()
            assert await early.wait() == 0, early.errors()
            kafka.start()
            await worker.ready()
            await worker.send("a")
            await worker.receives("a")
    finally:
        if not kafka.running:
            kafka.start()


async def waits(*workers: Worker) -> bool:
    """Whether all of them said that they wait for their broker."""
    return all("Waiting for the broker" in worker.errors() for worker in workers)
