"""A tiny Qwen-Image pipeline with random weights in diffusers' layout."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.engine import tiny

END = "<|endoftext|>"
#: Byte-level BPE writes a blank and a line's end as these.
LETTERS = [*string.ascii_letters, *string.digits, *",.()[]:<|>_", "Ġ", "Ċ"]


def tokenizer() -> Any:
    """Spells words letter by letter."""
    kind: Any = transformers.Qwen2Tokenizer
    words = [*LETTERS, END, "<|im_start|>", "<|im_end|>"]
    return kind(
        vocab={word: place for place, word in enumerate(words)},
        merges=[],
        unk_token=END,
        eos_token=END,
        pad_token=END,
    )


def text_encoder(width: int) -> Any:
    """A Qwen2.5-VL of two layers, with a vision part nobody uses."""
    settings: Any = transformers.Qwen2_5_VLConfig
    config = settings(
        text_config={
            "vocab_size": 128,
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"},
            "max_position_embeddings": 2048,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
        },
    )
    kind: Any = transformers.Qwen2_5_VLForConditionalGeneration
    return kind(config)


def qwen_image(folder: Path, *, scheduler: dict[str, Any] | None = None) -> Any:
    """A Qwen-Image pipeline, saved to ``folder``; shifts depend on the size, as the published one's."""
    torch.manual_seed(3)
    vae: Any = diffusers.AutoencoderKLQwenImage
    made: Any = diffusers.QwenImageTransformer2DModel
    flow: Any = diffusers.FlowMatchEulerDiscreteScheduler
    kind: Any = diffusers.QwenImagePipeline
    pipeline = kind(
        transformer=tiny.lively(
            made(
                patch_size=2,
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(4, 6, 6),
            )
        ),
        scheduler=flow(
            **{
                "use_dynamic_shifting": True,
                "base_shift": 0.5,
                "max_shift": 0.9,
                "max_image_seq_len": 8192,
                "shift_terminal": 0.02,
                **(scheduler or {}),
            }
        ),
        vae=vae(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 2.0, 0.7, 1.0],
        ),
        text_encoder=text_encoder(16),
        tokenizer=tokenizer(),
    )
    return tiny.saved(pipeline, folder)
