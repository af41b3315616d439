"""What a file is, from its keys and shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamapp.models.catalogue import HERE
from streamapp.models.kinds import Described, describe
from streamapp.models.safe import read_header
from tests.models.make_lora import make_lora

UNET = "model.diffusion_model."
CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def header(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: {"dtype": "F16", "shape": list(shape)} for name, shape in shapes.items()}


def unet(cross: int, channels: int = 4, **more: tuple[int, ...]) -> dict[str, Any]:
    return header(
        **{
            f"{UNET}input_blocks.0.0.weight": (320, channels, 3, 3),
            f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, cross),
        },
        **more,
    )


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (unet(768), Described("model", "sd15")),
        (unet(768, 9), Described("model", "sd15", {"inpainting": True})),
        (unet(1024), Described("model", "sd15", {"variant": "sd2"})),
        (unet(2048), Described("model", "sdxl")),
        (unet(2048, v_pred=(), ztsnr=()), Described("model", "sdxl", {"prediction": "v_prediction", "zero_snr": True})),
        (unet(1280), Described("model", None, {"variant": "sdxl-refiner"})),
        (
            header(**{"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "guidance_in.in_layer.weight": (1, 1)}),
            Described("model", "flux", {"variant": "dev", "lacks": ["vae", "clip_l", "t5"]}),
        ),
        (
            header(**{f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": (128,), "vae.decoder.conv_in.bias": (1,),
                      "text_encoders.clip_l.logit_scale": (), "text_encoders.t5xxl.logit_scale": ()}),
            Described("model", "flux", {"variant": "schnell"}),
        ),
        (
            header(**{f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": (1,),
                      "first_stage_model.decoder.conv_in.bias": (1,)}),
            Described("model", "sd3", {"lacks": ["clip_l", "clip_g"]}),
        ),
        (header(emb_params=(4, 768)), Described("textual_inversion", "sd15")),
        (header(clip_l=(4, 768), clip_g=(4, 1280)), Described("textual_inversion", "sdxl")),
        (header(**{"encoder.conv_in.weight": (1,), "decoder.conv_in.weight": (1,)}), Described("vae", None)),
        (header(**{"control_model.input_blocks.0.0.weight": (1,)}), Described("controlnet", None)),
        (header(weight=(1,)), Described("unknown", None)),
        (
            header(**{f"{CROSS}.lora_down.weight": (8, 768)}),
            Described("lora", "sd15"),
        ),
        (
            header(**{f"{CROSS}.lora_down.weight": (8, 2048)}),
            Described("lora", "sdxl"),
        ),
        (
            header(**{"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (8, 768)}),
            Described("lora", "sd15"),
        ),
        (header(**{"lora_te2_text_model_encoder_layers_0.lora_down.weight": (8, 1280)}), Described("lora", "sdxl")),
        (header(**{"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (8, 3072)}), Described("lora", "flux")),
        (header(**{"transformer_blocks.0.img_mlp.net.2.lora_A.weight": (8, 1)}), Described("lora", "qwen_image")),
        (header(**{"something.lora_down.weight": (8, 1)}), Described("lora", None)),
    ],
)  # fmt: skip
def test_a_file_is_what_its_keys_say(found: dict[str, Any], told: Described) -> None:
    assert describe(found) == told


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_real_lora_is_one(layout: Any, tmp_path: Path) -> None:
    found = describe(read_header(make_lora(tmp_path / "ink.safetensors", layout)))
    assert found.kind == "lora"


def test_a_vae_of_diffusers_is_one() -> None:
    assert describe(read_header(HERE / "pocket" / "vae" / "diffusion_pytorch_model.safetensors")).kind == "vae"
