"""Small checkpoints with random weights whose forward takes 10 ms and more on one core, so that overheads are honest.

The U-Net (7 M parameters) has the blocks of Stable Diffusion 1, narrower, and draws 64² pixels; the transformer (14 M)
has those of Flux, with guidance as an input. Where the engine draws with a transformer it is a narrower one (1 M), as
that family reads 512 tokens of text. Text encoders and VAEs are tiny: they are not what is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.engine import tiny, tiny_sd3

#: Pixels of a side of the U-Net's pictures; its latents are an eighth of it.
SIDE = 64
TEXT_WIDTH = 64
UNET = {
    "sample_size": SIDE // 8,
    "block_out_channels": (48, 96, 192),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 8,
    "norm_num_groups": 16,
}
#: 16 image tokens and as many of text.
TOKENS = 16
DIT = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 5,
    "joint_attention_dim": TEXT_WIDTH,
    "pooled_projection_dim": TEXT_WIDTH,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 24, 24),
}


#: Of the pipeline that the engine draws with: T5 has so many tokens.
FLUX = {**DIT, "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "joint_attention_dim": tiny_sd3.WIDTH}
T5_TOKENS = 512


def sd15(folder: Path) -> Any:
    """A Stable Diffusion pipeline with the small U-Net, saved to ``folder`` for the engine."""
    torch.manual_seed(0)
    unet: Any = diffusers.UNet2DConditionModel
    kind: Any = diffusers.StableDiffusionPipeline
    ddim: Any = diffusers.DDIMScheduler
    made = kind(
        vae=tiny.vae(),
        text_encoder=tiny.text_encoder(TEXT_WIDTH),
        tokenizer=tiny.tokenizer(),
        unet=unet(**UNET),
        scheduler=ddim(**tiny.SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(folder, safe_serialization=True)
    made.set_progress_bar_config(disable=True)
    return made


def flux(folder: Path) -> Any:
    """A Flux pipeline with a small transformer, saved to ``folder`` for the engine."""
    torch.manual_seed(0)
    transformer: Any = diffusers.FluxTransformer2DModel
    kind: Any = diffusers.FluxPipeline
    flow: Any = diffusers.FlowMatchEulerDiscreteScheduler
    tokenizer_2, encoder_2 = tiny_sd3.t5()
    made = kind(
        transformer=transformer(**FLUX),
        scheduler=flow(use_dynamic_shifting=True),
        vae=tiny_sd3.vae(),
        text_encoder=tiny.text_encoder(TEXT_WIDTH),
        tokenizer=tiny.tokenizer(),
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
    )
    made.save_pretrained(folder, safe_serialization=True)
    made.set_progress_bar_config(disable=True)
    return made


def flux_inputs(rows: int) -> dict[str, Any]:
    """What one forward of ``rows`` rows of that pipeline takes."""
    long = {"encoder_hidden_states": torch.randn(rows, T5_TOKENS, tiny_sd3.WIDTH), "txt_ids": torch.zeros(T5_TOKENS, 3)}
    return {**dit_inputs(rows), **long}


def unet_inputs(rows: int) -> dict[str, Any]:
    """What one forward of ``rows`` rows takes."""
    return {
        "sample": torch.randn(rows, 4, SIDE // 8, SIDE // 8),
        "timestep": torch.linspace(900, 100, rows),
        "encoder_hidden_states": torch.randn(rows, tiny.LENGTH, TEXT_WIDTH),
        "return_dict": False,
    }


def dit() -> Any:
    """The small transformer."""
    torch.manual_seed(1)
    kind: Any = diffusers.FluxTransformer2DModel
    return kind(**DIT).eval().requires_grad_(False)


def dit_inputs(rows: int) -> dict[str, Any]:
    """What one forward of ``rows`` rows takes."""
    side = int(TOKENS**0.5)
    places = torch.zeros(TOKENS, 3)
    places[:, 1], places[:, 2] = torch.arange(TOKENS) // side, torch.arange(TOKENS) % side
    return {
        "hidden_states": torch.randn(rows, TOKENS, 16),
        "encoder_hidden_states": torch.randn(rows, TOKENS, TEXT_WIDTH),
        "pooled_projections": torch.randn(rows, TEXT_WIDTH),
        "timestep": torch.linspace(0.9, 0.1, rows),
        "guidance": torch.full((rows,), 3.5),
        "img_ids": places,
        "txt_ids": torch.zeros(TOKENS, 3),
        "return_dict": False,
    }
