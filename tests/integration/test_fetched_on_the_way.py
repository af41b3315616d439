"""A request names a model that nobody registered; the service, killed while it fetches it, draws it all the same."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tests.integration.fleet import Fleet, Member, kill, until
from tests.models.publisher import Publisher
from tests.models.sites import Double, playing, sd15_file


async def event(fleet: Fleet, service: Member, task_id: str) -> dict[str, Any]:
    """The first live event of a task."""
    url = f"{service.url}/api/v1/image/task/{task_id}/events"
    async with fleet.session.get(url) as answer:
        async for line in answer.content:
            if line.startswith(b"data: "):
                found: dict[str, Any] = orjson.loads(line[6:])
                return found
    raise AssertionError("no event came")


async def test_a_kill_in_mid_download_costs_what_was_in_flight_and_nothing_else(tmp_path: Path) -> None:
    publisher = Publisher(sd15_file(rest=np.zeros(40_000_000, np.uint8)), faults=["stall"])
    async with playing(Double(publisher)) as site:
        env = {
            "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
            "STREAMAPP_ENGINE": "fake",
            "STREAMAPP_CIVITAI_URL": site,
            "STREAMAPP_ALLOW_PRIVATE_SOURCES": "true",
            "STREAMAPP_LEASE": "3",
            "STREAMAPP_LEASE_RENEWAL": "1",
        }
        async with Fleet(env, tmp_path) as fleet:
            service = fleet.start("up", "first")
            await fleet.ready(service, within=60)
            waiting = await fleet.submit(service, "a red apple", model="civitai:123@456", resolution="512x512", steps=2)
            other = await fleet.submit(service, "a red apple")
            assert (await fleet.finished(service, [other], within=60))[other]["status"] == "succeeded"

            async def some_of_it() -> bool:
                task = await fleet.task(service, waiting)
                assert task["status"] == "fetching", task
                return bool(task["progress"] > 0)

            await until(some_of_it, within=30, what="progress of the download", log=service.log)
            seen = await event(fleet, service, waiting)
            assert seen["status"] == "fetching"
            assert 0 < seen["progress"] < 40
            kill(service)
            await service.ended(within=10)
            service = fleet.start("up", "second")
            await fleet.ready(service, within=60)
            task = (await fleet.finished(service, [waiting], within=60))[waiting]
            assert (task["status"], task["model"], task["attempts"]) == ("succeeded", "Dream-..-Shaper", 1)
            [file] = (tmp_path / "data" / "models").rglob("*.safetensors")
            assert hashlib.sha256(file.read_bytes()).hexdigest() == publisher.digest
            resumed = publisher.seen[-1].headers["Range"]
            assert int(resumed.removeprefix("bytes=").removesuffix("-")) >= 4_000_000, "it began anew"
            service.signal(signal.SIGTERM)
            assert await service.ended(within=40) == 0
