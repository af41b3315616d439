"""What agents and tables may rely on, whichever broker carries them.

The application runs in its own process (:mod:`tests.broker.worker`), so that kill -9 is a real one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broker.steering import Broker, eventually

pytestmark = pytest.mark.timeout(180)


async def test_events_arrive_whole_and_a_restart_resumes_behind_what_was_acked(broker: Broker) -> None:
    async with broker.worker() as worker:
        await worker.send("a", partition=0, headers={"trace": "t-1"})
        await worker.send("b", "c", partition=1)
        got = await worker.receives("a", "b", "c")
        first = next(said for said in got if said["value"] == "a")
        assert first["key"] == "key-a"
        assert first["headers"] == {"trace": "t-1"}
        assert first["at"] == [0, 0]
        assert [said["at"] for said in got if said["value"] in "bc"] == [[1, 0], [1, 1]]
        await worker.ack("a", "b", "c")
        await worker.stop()
    assert await broker.committed() == {0: 1, 1: 2}

    async with broker.worker() as worker:
        await worker.send("d", partition=0)
        await worker.receives("d")
        assert worker.values == ["d"]


async def test_a_key_without_partition_always_goes_to_the_same_one(broker: Broker) -> None:
    async with broker.worker() as worker:
        offsets = [(await worker.send("same", partition=None))[0] for _ in range(4)]
        assert len({partition for partition, _ in offsets}) == 1
        assert [offset for _, offset in offsets] == [0, 1, 2, 3]


@pytest.mark.parametrize("committed_before", [False, True], ids=["fresh group", "after a commit"])
async def test_held_events_come_again_after_kill_9_though_their_successors_were_acked(
    broker: Broker, committed_before: bool
) -> None:
    async with broker.worker() as worker:
        if committed_before:
            await worker.send("done")
            await worker.receives("done")
            await worker.ack("done")
        await worker.send(*(f"held-{n}" for n in range(3)))
        await worker.send(*(f"acked-{n}" for n in range(5)))
        await worker.receives("held-2", "acked-4")
        await worker.ack(*(f"acked-{n}" for n in range(5)))
        # Another partition is committed after those acks, so the commit timer has seen them too.
        await worker.send("other", partition=1)
        await worker.receives("other")
        await worker.ack("other")
        await eventually(worker.committed, {"1": 1} | ({"0": 1} if committed_before else {}))
        await worker.kill()

    async with broker.worker() as worker:
        await worker.receives("held-0", "held-1", "held-2", "acked-4")
        assert "done" not in worker.values
        await worker.ack(*worker.values)
        await worker.stop()
    assert (await broker.committed())[0] == 8 + committed_before


async def test_that_very_test_fails_with_the_rule_that_faust_ships(broker: Broker) -> None:
    async with broker.worker(rule="faust") as worker:
        await worker.send("held", *(f"acked-{n}" for n in range(5)))
        await worker.receives("held", "acked-4")
        await worker.ack(*(f"acked-{n}" for n in range(5)))
        await worker.stop()
    assert (await broker.committed())[0] == 6, "Faust commits correctly now: the override may go"


async def test_acks_out_of_order_are_committed_once_the_gap_is_closed(broker: Broker) -> None:
    async with broker.worker() as worker:
        await worker.send("a", "b", "c", "d")
        await worker.receives("d")
        await worker.ack("c")
        await worker.ack("a")
        await worker.ack("b")
        await worker.stop()
    assert (await broker.committed())[0] == 3


async def test_tables_are_whole_again_after_kill_9(broker: Broker) -> None:
    async with broker.worker() as worker:
        await worker.send("x", "x", "x", partition=0)
        await worker.send("y", partition=1)
        for value in ("old", "new"):
            await worker.ask("send", topic="controls", items=[{"key": "k", "value": value}])
        await worker.receives("x", "y")
        expected = {"counts": {"key-x": 3, "key-y": 1}, "latest": {"k": "new"}}
        await eventually(worker.tables, expected)
        await worker.ack("x", "y")
        await worker.send("marker", partition=1)
        await worker.receives("marker")
        await eventually(worker.committed, {"0": 3, "1": 1})
        await worker.kill()

    async with broker.worker() as worker:
        await worker.receives("marker")
        found = await worker.tables()
        assert found["latest"] == {"k": "new"}
        assert {key: count for key, count in found["counts"].items() if key != "key-marker"} == expected["counts"]


async def test_a_full_buffer_holds_its_partition_back_and_loses_nothing(broker: Broker) -> None:
    async with broker.worker(poll=10) as worker:
        await worker.ask("full", partitions=[0])
        mine = [f"full-{n}" for n in range(300)]
        await worker.send(*mine[:20], partition=0)
        await worker.receives("full-0")
        await worker.send(*mine[20:], partition=0)
        # The other partition flows on, and while it does, the full one stays behind.
        theirs = [f"free-{n}" for n in range(100)]
        await worker.send(*theirs, partition=1)
        await worker.receives(*theirs)
        held_back = [value for value in mine if value not in worker.values]
        assert len(held_back) > 200
        await worker.ask("drop", partitions=[0])
        await worker.receives(*mine)
        assert [value for value in worker.values if value.startswith("full")] == mine


async def test_a_second_process_on_the_same_log_is_refused_with_a_sentence(tmp_path: Path) -> None:
    broker = Broker("embedded://", tmp_path, "app")
    await broker.prepare()
    async with broker.worker() as worker, broker.worker(wait=False) as second:
        assert await second.wait() != 0
        assert "is in use by process" in second.errors()
        assert "serves one process only" in second.errors()
        await worker.send("still served")
        await worker.receives("still served")
