"""Hosts without a common disk: what one of them was given, the others draw with."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from tests.integration.fleet import Fleet
from tests.integration.quick import QUICK
from tests.models.make_lora import make_lora


async def test_a_lora_uploaded_to_one_host_is_drawn_with_on_another(fleet: Fleet, tmp_path: Path) -> None:
    """The worker has a data folder of its own, so its only way to the file leads through the storage."""
    web = fleet.start("web", "web", **QUICK)
    worker = fleet.start("worker", "far", **QUICK, STREAMAPP_DATA_DIR=str(tmp_path / "far"))
    await fleet.ready(web, worker)
    lora = make_lora(tmp_path / "brush.safetensors")
    form = aiohttp.FormData({"name": "brush", "family": "sd15"})
    form.add_field("file", lora.read_bytes(), filename=lora.name)
    async with fleet.session.post(f"{web.url}/api/v1/lora/upload", data=form) as answer:
        assert answer.status in {200, 201}, await answer.text()
    task_id = await fleet.submit(web, "a panda", loras=[{"name": "brush", "weight": 0.8}])
    [task] = (await fleet.finished(web, [task_id], within=60)).values()
    assert (task["status"], task.get("error")) == ("succeeded", None)
    [taken] = (tmp_path / "far" / "models" / "loras").glob("*.safetensors")
    assert taken.read_bytes() == lora.read_bytes()
