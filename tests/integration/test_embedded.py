"""The laptop's form: everything in one process over the embedded broker, killed without warning and started again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

from tests.integration.fleet import Fleet, kill


async def test_a_kill_in_mid_run_loses_nothing_and_shows_nothing_twice(tmp_path: Path) -> None:
    """Forty tasks, two kill -9 at random moments: each ends succeeded, with exactly its own pictures."""
    env = {
        "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
        "STREAMAPP_ENGINE": "fake",
        "STREAMAPP_LEASE": "3",
        "STREAMAPP_LEASE_RENEWAL": "1",
    }
    chance = random.Random(20261123)
    async with Fleet(env, tmp_path) as fleet:
        service = fleet.start("up", "up-0")
        await fleet.ready(service, within=60)
        ids = [await fleet.submit(service, f"picture {number}", seed=number, batch_size=2) for number in range(40)]
        for restart in (1, 2):
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            kill(service)
            await service.ended(within=10)
            service = fleet.start("up", f"up-{restart}")
            await fleet.ready(service, within=60)
        tasks = await fleet.finished(service, ids, within=120)
        assert {task["status"] for task in tasks.values()} == {"succeeded"}
        for task_id, task in tasks.items():
            assert [image["index"] for image in task["images"]] == [0, 1]
            for index in (0, 1):
                assert (await fleet.picture(service, task, index)).startswith(b"\x89PNG"), task_id
        service.signal(signal.SIGTERM)
        assert await service.ended(within=40) == 0


async def test_a_second_service_on_the_same_data_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """The embedded broker belongs to one process; the second one says so and ends."""
    env = {"STREAMAPP_DATA_DIR": str(tmp_path / "data"), "STREAMAPP_ENGINE": "fake"}
    async with Fleet(env, tmp_path) as fleet:
        first = fleet.start("up", "first")
        await fleet.ready(first, within=60)
        second = fleet.start("up", "second")
        assert await second.ended(within=60) not in {0, -signal.SIGKILL}
        said = second.log.read_text()
        assert "Traceback" not in said
        assert os.fspath(tmp_path / "data") in said
