"""A running service forgets by itself."""

from __future__ import annotations

from pathlib import Path

from tests.integration.fleet import Fleet, until


async def test_a_task_is_unknown_after_its_time_and_its_pictures_are_gone(tmp_path: Path) -> None:
    env = {
        "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
        "STREAMAPP_ENGINE": "fake",
        "STREAMAPP_KEEP_DAYS": str(8 / 86_400),
    }
    async with Fleet(env, tmp_path) as fleet:
        service = fleet.start("up", "up")
        await fleet.ready(service, within=60)
        ids = [await fleet.submit(service, "a plum", seed=seed) for seed in range(5)]
        tasks = await fleet.finished(service, ids, within=30)
        assert {task["status"] for task in tasks.values()} == {"succeeded"}
        files = tmp_path / "data" / "files"

        async def forgotten() -> bool:
            for task_id in ids:
                async with fleet.session.get(f"{service.url}/api/v1/image/task/{task_id}") as answer:
                    if answer.status != 404:
                        return False
            return not list(files.rglob("*.png"))

        await until(forgotten, within=30, what="tasks and files are gone", log=service.log, every=0.3)
