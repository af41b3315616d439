"""The main job on the real thing: Kafka, MariaDB, S3, real pictures, workers that come, go and die."""

from __future__ import annotations

import io
import signal

from PIL import Image

from streamapp.postprocess import read_recipe
from tests.integration.fleet import Fleet, Member, children_of_session, kill, until

PROMPTS = ["a cute panda", "a red apple", "a blue car on a yellow background", "a green frog", "a rocket", "a pizza"]


async def partitions(fleet: Fleet, view: Member) -> dict[str, int]:
    """Task partitions each live worker owns, as one member's own status view shows it."""
    status = (await fleet.json("GET", f"{view.url}/api/v1/status"))["data"]
    return {
        row["worker_id"]: sum(len(owned) for owned in row["partitions"].values())
        for row in status["workers"]
        if row["role"] != "web"
    }


async def test_the_fleet_draws_grows_shrinks_and_survives_a_kill(fleet: Fleet) -> None:
    """Three workers draw; a fourth joins and draws; one is stopped, one is killed; every task ends once."""
    web = fleet.start("web", "web")
    workers = [fleet.start("worker", f"worker-{number}") for number in range(3)]
    await fleet.ready(web, *workers, within=240)

    # The main job: twelve tasks, real pictures with their recipes, the same seed the same picture.
    ids = [await fleet.submit(web, prompt, seed=7, steps=8) for prompt in PROMPTS for _ in range(2)]
    tasks = await fleet.finished(web, ids, within=180)
    assert {task["status"] for task in tasks.values()} == {"succeeded"}
    pictures = [await fleet.picture(web, tasks[task_id]) for task_id in ids]
    for data, prompt in zip(pictures, [p for p in PROMPTS for _ in range(2)], strict=True):
        assert Image.open(io.BytesIO(data)).size == (128, 128)
        assert read_recipe(data)["text"] == prompt
    pixels = [Image.open(io.BytesIO(data)).convert("RGB").tobytes() for data in pictures]
    assert len(set(pixels)) >= len(PROMPTS)
    for first, second in zip(pixels[::2], pixels[1::2], strict=True):
        assert max(abs(a - b) for a, b in zip(first, second, strict=True)) <= 1

    # Every member's views show the same three workers owning all sixteen partitions between them.
    expected = {worker.name for worker in workers}

    async def same_everywhere() -> bool:
        views = [await partitions(fleet, member) for member in (web, *workers)]
        return all(set(view) == expected and sum(view.values()) == 16 for view in views)

    await until(same_everywhere, within=60, what="all views show the three workers and sixteen partitions", every=1)

    # A fourth worker joins: partitions move to it, and it draws.
    fourth = fleet.start("worker", "worker-3")
    await fleet.ready(fourth, within=240)

    async def fourth_owns() -> bool:
        return (await partitions(fleet, web)).get("worker-3", 0) > 0

    await until(fourth_owns, within=60, what="partitions move to the fourth worker", every=1)
    drawn_by: set[str] = set()

    async def fourth_draws() -> bool:
        some = [await fleet.submit(web, "a green frog", steps=4) for _ in range(8)]
        drawn_by.update(task["worker_id"] for task in (await fleet.finished(web, some, within=120)).values())
        return "worker-3" in drawn_by

    await until(fourth_draws, within=180, what="the fourth worker draws", every=1)

    # One leaves with SIGTERM while all are busy, one is killed: everything still ends, once.
    ids = [await fleet.submit(web, prompt, steps=60, batch_size=2) for prompt in PROMPTS * 6]

    async def some_running() -> bool:
        return any([(await fleet.task(web, task_id))["status"] == "running" for task_id in ids])

    await until(some_running, within=60, what="work is under way")
    leaver, victim = workers[0], workers[1]
    leaver.signal(signal.SIGTERM)
    kill(victim)
    assert await leaver.ended(within=60) == 0
    tasks = await fleet.finished(web, ids, within=300)
    assert {task["status"] for task in tasks.values()} == {"succeeded"}
    for task in tasks.values():
        assert len(task["images"]) == 2
        assert task["attempts"] <= 2

    # The killed worker's engine child noticed by itself.
    async def no_orphan() -> bool:
        return not children_of_session(victim.process.pid)

    await until(no_orphan, within=10, what="the killed worker's engine child ends")
