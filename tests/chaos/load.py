"""Submits tasks the way a careful client does: with a key, again after every refusal that may pass."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.integration.fleet import Fleet, Member

#: Share of tasks that their user cancels.
CANCELLED = 0.03
#: A submit that is refused for this long was not refused for a moment, seconds.
PATIENCE = 120.0


@dataclass
class Load:
    """What was accepted, by id, and how often it took another try."""

    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    tries: int = 0

    @property
    def repeated(self) -> int:
        """Tries beyond the first."""
        return self.tries - len(self.accepted)


def body(number: int, chance: random.Random, slow: float) -> dict[str, Any]:
    """Task ``number`` of a run."""
    spell = "fake:slow " if chance.random() < slow else ""
    return {
        "text": f"{spell}picture {number}",
        "params": {"seed": number, "steps": chance.randint(8, 25), "batch_size": chance.choice([1, 1, 1, 2])},
        # P2 and P3 have no deadline: nothing here may end by expiring.
        "priority": chance.choice(["P2", "P2", "P3"]),
        "idempotency_key": f"chaos-{number}",
    }


async def submit_all(fleet: Fleet, web: Member, tasks: int, span: float, seed: int, slow: float) -> Load:
    """Submit ``tasks`` evenly over ``span`` seconds; returns when all are accepted."""
    chance = random.Random(seed + 1)
    load, began = Load(), time.monotonic()
    bodies = [body(number, chance, slow) for number in range(tasks)]
    unwanted = {number for number in range(tasks) if chance.random() < CANCELLED}

    async def one(number: int) -> None:
        await asyncio.sleep(max(0.0, began + span * number / tasks - time.monotonic()))
        task_id = await accepted(fleet, web, bodies[number], load)
        load.accepted[task_id] = bodies[number]
        if number in unwanted:
            await asyncio.sleep(0.3)
            await cancel(fleet, web, task_id, load)

    await asyncio.gather(*(one(number) for number in range(tasks)))
    return load


async def accepted(fleet: Fleet, web: Member, task: dict[str, Any], load: Load) -> str:
    """The id of a task, however often it takes."""
    end = time.monotonic() + PATIENCE
    last = "nothing"
    while time.monotonic() < end:
        load.tries += 1
        try:
            async with fleet.session.post(f"{web.url}/api/v1/image/generate", json=task) as answer:
                said = await answer.json()
                if answer.status == 200:
                    return str(said["data"]["task_id"])
                assert answer.status in {429, 503}, f"a submit was answered {answer.status}: {said}"
                last = said["message"]
        except (aiohttp.ClientError, TimeoutError) as error:
            last = repr(error)
        await asyncio.sleep(0.5)
    raise AssertionError(f"a submit was refused for {PATIENCE} s; the last word: {last}")


async def cancel(fleet: Fleet, web: Member, task_id: str, load: Load) -> None:
    """Cancel once; whether it won is for the row to say, and a service that is away keeps the task."""
    try:
        async with fleet.session.delete(f"{web.url}/api/v1/image/task/{task_id}") as answer:
            if answer.status == 200:
                load.cancelled.add(task_id)
    except (aiohttp.ClientError, TimeoutError):
        pass
