"""A tiny Stable Diffusion 3 pipeline with random weights in diffusers' layout."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.engine import tiny

WIDTH = 40  # of the joint text: both CLIP encoders' widths together


def t5() -> tuple[Any, Any]:
    """A tokenizer that spells, and a T5 encoder."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, *string.digits, *",.()[]:"]
    library: Any = transformers  # says nothing of this name to a type checker
    tokenizer = library.T5TokenizerFast(
        vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)], extra_ids=0
    )
    settings: Any = transformers.T5Config
    config = settings(vocab_size=len(pieces), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    encoder: Any = transformers.T5EncoderModel
    return tokenizer, encoder(config)


def vae(channels: int = 4) -> Any:
    """A VAE that reduces sides by eight, with a shift."""
    made: Any = diffusers.AutoencoderKL
    return made(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=channels,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def sd3(
    folder: Path, *, with_t5: bool = True, channels: int = 4, scheduler: dict[str, Any] | None = None, **options: Any
) -> Any:
    """A Stable Diffusion 3 pipeline, saved to ``folder``; ``options`` are its transformer's."""
    torch.manual_seed(2)
    made: Any = diffusers.SD3Transformer2DModel
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_projection_dim": 32,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": 12 + 8,
        "pos_embed_max_size": 40,
    }
    transformer = made(**{**config, **options})
    tokenizer_3, encoder_3 = t5() if with_t5 else (None, None)
    kind: Any = diffusers.StableDiffusion3Pipeline
    flow: Any = diffusers.FlowMatchEulerDiscreteScheduler
    pipeline = kind(
        transformer=tiny.lively(transformer),
        scheduler=flow(**{"shift": 3.0, **(scheduler or {})}),
        vae=vae(channels),
        text_encoder=tiny.text_encoder(16, projection=8, layers=4),
        tokenizer=tiny.tokenizer(),
        text_encoder_2=tiny.text_encoder(24, projection=12, layers=4),
        tokenizer_2=tiny.tokenizer("!"),
        text_encoder_3=encoder_3,
        tokenizer_3=tokenizer_3,
    )
    absent: dict[str, Any] = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    return tiny.saved(pipeline, folder, **absent)
