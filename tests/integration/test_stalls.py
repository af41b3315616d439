"""Workers that stall, join and leave: a lease belongs to one worker, and nothing is drawn twice without need."""

from __future__ import annotations

import signal

from tests.integration.conftest import Rows
from tests.integration.fleet import Fleet, until
from tests.integration.quick import QUICK, SLOW, logged, state


async def test_a_stalled_worker_cannot_write_over_the_one_that_took_its_job(fleet: Fleet, rows: Rows) -> None:
    """Stopped in mid-drawing until its lease and its membership are over, then woken: its result is dropped."""
    web = fleet.start("web", "web", **QUICK)
    first = fleet.start("worker", "first", **QUICK)
    await fleet.ready(web, first)
    task_id = await fleet.submit(web, SLOW, steps=50)
    await state(fleet, web, [task_id], "running")
    first.signal(signal.SIGSTOP)
    second = fleet.start("worker", "second", **QUICK)

    async def taken() -> bool:
        return bool((await fleet.task(web, task_id))["worker_id"] == "second")

    await until(taken, within=60, what="the second worker claims the job", log=second.log)
    first.signal(signal.SIGCONT)
    await logged(first, "claim_lost", within=30)
    task = (await fleet.finished(web, [task_id], within=60))[task_id]
    assert (task["status"], task["worker_id"], task["attempts"]) == ("succeeded", "second", 2)
    assert len(task["images"]) == 1
    assert rows("SELECT COUNT(*) FROM images") == ((1,),)
    # The one that was stopped works on: it joins again, and both end orderly.
    again = await fleet.submit(web, "a nut")
    assert (await fleet.finished(web, [again], within=60))[again]["status"] == "succeeded"


async def test_a_rebalance_repeats_nothing_on_workers_that_live(fleet: Fleet, rows: Rows) -> None:
    """Workers join and leave while jobs run and wait: redeliveries are recognised, every job is drawn once."""
    web = fleet.start("web", "web", **QUICK)
    first = fleet.start("worker", "first", **QUICK)
    await fleet.ready(web, first)
    ids = [await fleet.submit(web, SLOW, steps=80, seed=n) for n in range(8)]
    await state(fleet, web, ids, "running")
    second = fleet.start("worker", "second", **QUICK)
    await fleet.ready(second)
    ids += [await fleet.submit(web, SLOW, steps=20, seed=n) for n in range(60)]
    second.signal(signal.SIGTERM)
    assert await second.ended(within=40) == 0
    tasks = await fleet.finished(web, ids, within=90)
    assert {(task["status"], task["attempts"]) for task in tasks.values()} == {("succeeded", 1)}
    assert rows("SELECT COUNT(*), COUNT(DISTINCT task_id) FROM images") == ((68, 68),)
