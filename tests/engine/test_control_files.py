"""Files of ControlNets: folders, single files in both layouts, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from streamapp.engine import EngineError
from streamapp.engine.architectures import sd2, sd15, sdxl
from streamapp.engine.controls import configuration, load
from streamapp.engine.families import Device
from streamapp.training.ldm_file import unet_name
from tests.engine import tiny

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tiny.controlnet(tmp_path / "canny", tiny.unet(16), 1)
    return tmp_path / "canny"


def published(name: str, config: Mapping[str, Any]) -> str:
    """The published name of a parameter of diffusers' ControlNet."""
    module, _, leaf = name.rpartition(".")
    match module.split("."):
        case ["controlnet_down_blocks", number]:
            return f"zero_convs.{number}.0.{leaf}"
        case ["controlnet_mid_block"]:
            return f"middle_block_out.0.{leaf}"
        case ["controlnet_cond_embedding", "conv_in"]:
            return f"input_hint_block.0.{leaf}"
        case ["controlnet_cond_embedding", "conv_out"]:
            return f"input_hint_block.14.{leaf}"
        case ["controlnet_cond_embedding", "blocks", number]:
            return f"input_hint_block.{2 * int(number) + 2}.{leaf}"
    return unet_name(name, config)


def test_one_file_in_either_layout_is_the_same_controlnet(folder: Path, tmp_path: Path) -> None:
    """Its configuration lies beside it."""
    config = orjson.loads((folder / "config.json").read_bytes())
    weights = load_file(folder / FILE)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    bare = tmp_path / "bare.safetensors"
    save_file(weights, bare)
    old = tmp_path / "old.safetensors"
    save_file({f"control_model.{published(name, config)}": tensor for name, tensor in weights.items()}, old)
    expected = load(folder, Device())
    assert [load(path, Device()).digest for path in (bare, old)] == [expected.digest] * 2
    tiny.controlnet(tmp_path / "other", tiny.unet(16), 2)
    assert load(tmp_path / "other", Device()).digest != expected.digest


@pytest.mark.parametrize("width", [768, 1024, 2048])
def test_a_file_without_configuration_has_the_published_size(width: int, tmp_path: Path) -> None:
    """That of a copy of the published U-Net's first half, which is what a ControlNet is."""
    tensors = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.empty(4, width, device="meta")
    }
    config = configuration(tmp_path / "canny.safetensors", tensors)
    unets: dict[int, Any] = {768: sd15().unet, 1024: sd2().unet, 2048: sdxl().unet}
    models: Any = diffusers
    with torch.device("meta"):
        copy = models.ControlNetModel.from_unet(
            models.UNet2DConditionModel(**unets[width]), load_weights_from_unet=False
        )
        made = models.ControlNetModel(**config)
    assert _shapes(made) == _shapes(copy)
    millions = round(sum(parameter.numel() for parameter in made.parameters()) / 1e6)
    assert millions == {768: 361, 1024: 364, 2048: 1251}[width]


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **values}))


def test_what_cannot_be_drawn_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """Another class, pooled residuals, a missing layer, differences, pickles, and folders with nothing."""

    def refusal(path: Path) -> str:
        with pytest.raises(EngineError) as refused:
            load(path, Device())
        assert refused.value.code == "load_failed"
        return refused.value.message

    _change(folder, _class_name="ControlNetUnionModel")
    assert "is a ControlNetUnionModel" in refusal(folder)
    _change(folder, _class_name="ControlNetModel", global_pool_conditions=True)
    assert "pools its residuals" in refusal(folder)
    _change(folder, global_pool_conditions=False)
    weights = load_file(folder / FILE)
    del weights["controlnet_mid_block.bias"]
    save_file(weights, folder / FILE)
    assert "lacks controlnet_mid_block.bias" in refusal(folder)
    save_file({"difference": torch.zeros(1)}, tmp_path / "difference.safetensors")
    assert "holds differences" in refusal(tmp_path / "difference.safetensors")
    save_file({"what": torch.zeros(1)}, tmp_path / "what.safetensors")
    assert "put its config.json beside it" in refusal(tmp_path / "what.safetensors")
    (tmp_path / "old.pth").write_bytes(b"")
    assert "only safetensors" in refusal(tmp_path / "old.pth")
    (tmp_path / "empty").mkdir()
    assert "has no safetensors file" in refusal(tmp_path / "empty")
