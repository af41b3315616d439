"""SDXL as an operator adds it: a folder registered, a process that serves the family, a request that names it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.engine import tiny
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.filterwarnings("ignore:.*torch_dtype.*")]


async def test_a_registered_sdxl_model_is_drawn(tmp_path: Path) -> None:
    """With random weights of a few thousand parameters; the way is that of published ones."""
    tiny.sdxl(tmp_path / "tiny")
    env = {
        "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
        "STREAMAPP_FAMILIES": "sd15,sdxl",
        "STREAMAPP_ENGINE": "inline",
        "STREAMAPP_PRELOAD": "wide",
    }
    async with Fleet(env, tmp_path) as fleet:
        added = fleet.command("models", "add", "wide", str(tmp_path / "tiny"), "--family", "sdxl")
        assert added.wait(60) == 0, (tmp_path / "models-add.log").read_text()
        service = fleet.start("up", "up")
        await fleet.ready(service)
        ids = [
            await fleet.submit(service, "(a panda:1.2) BREAK in snow", model="wide", width=512, height=576, steps=2),
            await fleet.submit(service, "a red apple", steps=2),
        ]
        tasks = await fleet.finished(service, ids, within=60)
        assert [tasks[task_id]["status"] for task_id in ids] == ["succeeded", "succeeded"]
        wide = tasks[ids[0]]
        assert (wide["recipe"]["params"]["model"], wide["drawn_at"]) == ("wide", "512x576")
        assert Image.open(io.BytesIO(await fleet.picture(service, wide))).size == (512, 576)
        refused = await fleet.json(
            "POST", f"{service.url}/api/v1/image/generate", {"text": "x", "params": {"model": "wide", "clip_skip": 13}}
        )
        assert refused["field"] == "params.clip_skip"
