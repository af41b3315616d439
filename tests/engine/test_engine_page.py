"""The page on the engine is true: its snippets run one after the other, as a reader would run them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.engine import tiny
from tests.engine.test_exact import POCKET
from tests.models.make_lora import make_lora

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engine.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names."""
    (tmp_path / "streamapp" / "models").mkdir(parents=True)
    (tmp_path / "streamapp" / "models" / "pocket").symlink_to(POCKET)
    make_lora(tmp_path / "style.safetensors")
    width = json.loads((POCKET / "text_encoder" / "config.json").read_text())["hidden_size"]
    save_file({"emb_params": torch.ones(2, width)}, tmp_path / "badpicture.safetensors")
    models: Any = diffusers.UNet2DConditionModel
    tiny.controlnet(tmp_path / "canny", models.from_pretrained(POCKET / "unet", local_files_only=True), seed=1)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_snippet_runs(folder: Path) -> None:
    """And draws what it says."""
    names: dict[str, Any] = {}
    for number, code in enumerate(SNIPPETS):
        exec(compile(code, f"snippet {number}", "exec"), names)  # noqa: S102 (our own page)
    names["engine"].close()
    assert len(SNIPPETS) == 9
    assert {path.name for path in folder.glob("*.png")} == {"a cute panda.png", "a red apple.png", "photo.png"}
    assert len({picture.tobytes() for picture in names["pictures"]}) == 3
    assert names["painted"].size == (96, 96)
    assert names["canvas"].size == names["beyond"].size == (128, 96)
    assert [picture.size for picture in (*names["steered"], names["frog"], *names["pandas"], names["better"])] == [
        (64, 64)
    ] * 4


def test_the_first_one_is_ten_lines() -> None:
    assert len([line for line in SNIPPETS[0].splitlines() if line.strip()]) <= 10
