"""How processes end: in time, with nothing lost, and with an exit code that says how."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from tests.integration.conftest import Rows
from tests.integration.fleet import Fleet, Member, children_of_session, kill, until
from tests.integration.quick import QUICK, SLOW, state

#: A membership that would outlast the test if it were not given up.
LONG_SESSION = QUICK | {"STREAMAPP_SESSION_TIMEOUT": "45", "STREAMAPP_LEASE": "60"}


async def owner_of_all(fleet: Fleet, web: Member, name: str) -> bool:
    """Whether one worker has all task partitions by now."""
    status = (await fleet.json("GET", f"{web.url}/api/v1/status"))["data"]
    owned = {
        row["worker_id"]: sum(len(numbers) for numbers in row["partitions"].values())
        for row in status["workers"]
        if row["role"] != "web"
    }
    return owned == {name: 16}


async def test_a_drain_hands_over_at_once(fleet: Fleet, rows: Rows) -> None:
    """What can end within the time ends, the rest is queued again uncounted, and the group is left at once."""
    web = fleet.start("web", "web", **LONG_SESSION)
    first = fleet.start("worker", "first", **LONG_SESSION, STREAMAPP_DRAIN="4")
    await fleet.ready(web, first)
    short = await fleet.submit(web, SLOW, steps=25)
    long = [await fleet.submit(web, SLOW, steps=140, seed=n) for n in range(3)]
    await state(fleet, web, [short, *long], "running")
    second = fleet.start("worker", "second", **LONG_SESSION)
    await fleet.ready(second)
    began = time.monotonic()
    first.signal(signal.SIGTERM)
    assert await first.ended(within=25) == 0
    assert (await fleet.task(web, short))["worker_id"] == "first"
    left = time.monotonic()
    assert left - began < 4 + 10, "drain, commit, leave"
    assert rows("SELECT COUNT(*) FROM tasks WHERE claimed_by = 'first' AND state = 'running'") == ((0,),)
    await until(lambda: owner_of_all(fleet, web, "second"), within=20, what="the second has all partitions")
    tasks = await fleet.finished(web, [short, *long], within=60)
    assert {(tasks[i]["status"], tasks[i]["worker_id"], tasks[i]["attempts"]) for i in long} == {
        ("succeeded", "second", 1)
    }


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """The environment of one process that needs no server."""
    return {"STREAMAPP_DATA_DIR": str(tmp_path / "data"), **QUICK}


async def test_open_streams_end_before_anything_else(alone: dict[str, str], tmp_path: Path) -> None:
    """A client that watches a task sees its stream end at the signal, while the drain goes on."""
    async with Fleet({**alone, "STREAMAPP_DRAIN": "8"}, tmp_path) as fleet:
        service = fleet.start("up", "up")
        await fleet.ready(service, within=60)
        task_id = await fleet.submit(service, SLOW, steps=60)
        await state(fleet, service, [task_id], "running")
        url = f"{service.url}/api/v1/image/task/{task_id}/events"
        async with aiohttp.ClientSession() as session, session.get(url) as stream:
            assert (await stream.content.readline()).strip()
            service.signal(signal.SIGTERM)
            async with asyncio.timeout(3):
                while not stream.content.at_eof():
                    await stream.content.read(1024)
            assert service.process.poll() is None, "the drain goes on"
        assert await service.ended(within=20) == 0
        # What was running has ended: the next start finds it done.
        again = fleet.start("up", "again")
        await fleet.ready(again, within=60)
        task = await fleet.task(again, task_id)
        assert (task["status"], task["attempts"]) == ("succeeded", 1)


@pytest.mark.parametrize("prompt", ["fake:slow", "fake:hang"])
async def test_an_engine_child_dies_with_its_parent(prompt: str, alone: dict[str, str], tmp_path: Path) -> None:
    """Also in the middle of a tick that never ends."""
    async with Fleet({**alone, "STREAMAPP_ENGINE": "fake-process"}, tmp_path) as fleet:
        service = fleet.start("up", "up")
        await fleet.ready(service, within=60)
        task_id = await fleet.submit(service, prompt, steps=140)
        await state(fleet, service, [task_id], "running")
        session = service.process.pid
        assert len(children_of_session(session)) >= 2
        kill(service)

        async def alone_no_more() -> bool:
            return not children_of_session(session)

        await until(alone_no_more, within=10, what="the engine child ends", log=service.log)
