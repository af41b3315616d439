"""The three networks, in the layout of Stable Diffusion 1.5 and small.

Source of the layout: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022), as
diffusers and transformers build it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

#: Tokens of a text window in training and in the tokenizer: longer padding drowns the words.
WINDOW = 32
#: Pixels per latent along a side.
FACTOR = 8
LATENT = (4, 16, 16)

SCHEDULER: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


def vae() -> Any:
    """An ``AutoencoderKL``: 128 pixels to 16 latents a side, 0.98 million parameters."""
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL
    return kind(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 48, 72),
        layers_per_block=1,
        latent_channels=LATENT[0],
        norm_num_groups=8,
        sample_size=LATENT[1] * FACTOR,
        scaling_factor=1.0,
    )


def unet() -> Any:
    """A ``UNet2DConditionModel`` of 4.1 million parameters."""
    from diffusers import UNet2DConditionModel

    kind: Any = UNet2DConditionModel
    return kind(
        sample_size=LATENT[1],
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        block_out_channels=(64, 96, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def text_encoder(vocabulary: int) -> Any:
    """A ``CLIPTextModel`` for that many tokens, the last two of which begin and end a text."""
    from transformers import CLIPTextConfig, CLIPTextModel

    kind: Any = CLIPTextConfig
    config = kind(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=256,
        projection_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


def alphas() -> torch.Tensor:
    """Cumulative products of 1 − beta, ``(1000,)``, float32."""
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()
