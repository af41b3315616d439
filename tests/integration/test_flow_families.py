"""Stable Diffusion 3, Flux and Qwen-Image as an operator adds them: folders registered, served, requested by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.engine import tiny_flux, tiny_qwen, tiny_sd3
from tests.integration.fleet import Fleet

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


async def test_registered_folders_are_drawn(tmp_path: Path) -> None:
    """With random weights of a few thousand parameters; the way is that of published ones."""
    tiny_sd3.sd3(tmp_path / "three")
    tiny_flux.flux(tmp_path / "dev")
    tiny_flux.flux(tmp_path / "fast", guided=False)
    tiny_qwen.qwen_image(tmp_path / "reader")
    env = {
        "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
        "STREAMAPP_FAMILIES": "sd15,sd3,flux,qwen_image",
        "STREAMAPP_ENGINE": "inline",
    }
    folders = {"three": "sd3", "dev": "flux", "fast": "flux", "reader": "qwen_image"}
    async with Fleet(env, tmp_path) as fleet:
        for name, family in folders.items():
            added = fleet.command("models", "add", name, str(tmp_path / name), "--family", family)
            assert added.wait(60) == 0, (tmp_path / "models-add.log").read_text()
        service = fleet.start("up", "up")
        await fleet.ready(service)
        small: dict[str, Any] = {"width": 512, "height": 512, "steps": 2}
        ids = {
            "three": await fleet.submit(service, "(red:1.2) panda", model="three", **small),
            "dev": await fleet.submit(service, "panda", model="dev", negative_text="dull", true_cfg_scale=3, **small),
            "fast": await fleet.submit(service, "panda", model="fast", width=256, height=320),
            "reader": await fleet.submit(service, "panda", model="reader", priority="P1", **small),
        }
        tasks = await fleet.finished(service, list(ids.values()), within=120)
        assert {tasks[task_id]["status"] for task_id in ids.values()} == {"succeeded"}
        recipes = {name: tasks[task_id]["images"][0]["recipe"] for name, task_id in ids.items()}
        for name, task_id in ids.items():
            size = (256, 320) if name == "fast" else (512, 512)
            assert Image.open(io.BytesIO(await fleet.picture(service, tasks[task_id]))).size == size
            assert recipes[name]["provenance"]["family"] == folders[name]
        assert "weights in the prompt were left out" in recipes["three"]["provenance"]["notes"][0]
        assert recipes["dev"]["params"]["true_cfg_scale"] == 3
        # What its publisher says of schnell, known from the folder.
        fast = recipes["fast"]["params"]
        assert (fast["steps"], fast["cfg_scale"], fast["sampler"]) == (4, 0, "Euler")
        refused = await fleet.json(
            "POST", f"{service.url}/api/v1/image/generate", {"text": "x", "params": {"model": "dev", "sampler": "DDIM"}}
        )
        assert refused["field"] == "sampler"
