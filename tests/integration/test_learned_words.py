"""A learned word as an operator adds it and a prompt names it: another picture, and a recipe that says why."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.engine.test_exact import POCKET
from tests.integration.fleet import Fleet, until


async def test_a_registered_word_is_drawn(tmp_path: Path) -> None:
    width = json.loads((POCKET / "text_encoder" / "config.json").read_text())["hidden_size"]
    save_file({"emb_params": torch.randn(2, width, generator=torch.manual_seed(1))}, tmp_path / "toy.safetensors")
    save_file({"emb_params": torch.ones(1, width + 1)}, tmp_path / "other.safetensors")
    env = {"STREAMAPP_DATA_DIR": str(tmp_path / "data"), "STREAMAPP_ENGINE": "inline"}
    async with Fleet(env, tmp_path) as fleet:
        service = fleet.start("up", "up")
        await fleet.ready(service)
        drawn = {"steps": 2, "seed": 5}
        before = await fleet.submit(service, "a toy panda", **drawn)
        await fleet.finished(service, [before], within=60)
        for name in ("toy", "other"):
            added = fleet.command("embeddings", "add", name, str(tmp_path / f"{name}.safetensors"), "--family", "sd15")
            assert added.wait(60) == 0, (tmp_path / "embeddings-add.log").read_text()

        async def known() -> bool:
            words = (await fleet.json("GET", f"{service.url}/api/v1/models"))["data"]["embeddings"]
            return {each["name"] for each in words} == {"toy", "other"}

        await until(known, within=20, what="the words are known", every=0.2, log=service.log)
        texts = ("a toy panda", "a (toy:1.0) panda", "an other panda")
        ids = [before, *[await fleet.submit(service, text, **drawn) for text in texts]]
        tasks = await fleet.finished(service, ids, within=60)
        plain, with_word, same, unfit = (tasks[task_id] for task_id in ids)
        assert [task["status"] for task in (plain, with_word, same, unfit)] == ["succeeded"] * 3 + ["failed"]
        pictures = [await fleet.picture(service, task) for task in (plain, with_word, same)]
        digests = [task["images"][0]["recipe"]["provenance"].get("embeddings") for task in (plain, with_word, same)]
        assert digests[0] is None
        assert digests[1] == digests[2] != []
        assert [each["name"] for each in digests[1]] == ["toy"]
        # Metadata differ by task; a picture of other pixels differs in size or content far more.
        assert pictures[0] != pictures[1]
        assert "made for another family" in unfit["error"]["message"]
