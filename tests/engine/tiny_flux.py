"""A tiny Flux pipeline with random weights in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.engine import tiny, tiny_sd3


def flux(
    folder: Path, *, guided: bool = True, scheduler: dict[str, Any] | None = None, layers: tuple[int, int] = (1, 1)
) -> Any:
    """A pipeline, saved to ``folder``: dev, whose shift depends on the size, or (not ``guided``) schnell."""
    torch.manual_seed(4)
    made: Any = diffusers.FluxTransformer2DModel
    transformer = made(
        in_channels=16,
        num_layers=layers[0],
        num_single_layers=layers[1],
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=tiny_sd3.WIDTH,
        pooled_projection_dim=16,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    tokenizer_2, encoder_2 = tiny_sd3.t5()
    kind: Any = diffusers.FluxPipeline
    flow: Any = diffusers.FlowMatchEulerDiscreteScheduler
    shifts = (
        {"use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64} if guided else {"shift": 1.0}
    )
    pipeline = kind(
        transformer=tiny.lively(transformer),
        scheduler=flow(**{**shifts, **(scheduler or {})}),
        vae=tiny_sd3.vae(),
        text_encoder=tiny.text_encoder(16),
        tokenizer=tiny.tokenizer(),
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
    )
    return tiny.saved(pipeline, folder)
