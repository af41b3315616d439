"""Tiny checkpoints with random weights in diffusers' layout: what families are compared with their pipelines on."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
#: Letters and a few whole words; padding of OpenCLIP is token 0.
LETTERS = string.ascii_lowercase + string.digits + ",.()[]:"
VOCABULARY = ["!", *LETTERS, *(f"{letter}</w>" for letter in "!" + LETTERS), BEGIN, END]
LENGTH = 17
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def tokenizer(pad: str = END) -> Any:
    """Spells words letter by letter, in windows of 15."""
    made: Any = transformers.CLIPTokenizer
    return made(
        vocab={word: index for index, word in enumerate(VOCABULARY)},
        merges=[],
        unk_token=END,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=pad,
        model_max_length=LENGTH,
    )


def text_encoder(width: int, projection: int | None = None, layers: int = 3) -> Any:
    """A CLIP text encoder; with ``projection`` one that pools."""
    settings: Any = transformers.CLIPTextConfig
    config = settings(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=projection or width,
        bos_token_id=VOCABULARY.index(BEGIN),
        eos_token_id=VOCABULARY.index(END),
        pad_token_id=VOCABULARY.index(END),
    )
    kind: Any = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return lively(kind(config))


def unet(cross: int, **options: Any) -> Any:
    """A U-Net of two levels."""
    made: Any = diffusers.UNet2DConditionModel
    return lively(
        made(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=cross,
            attention_head_dim=options.pop("attention_head_dim", 4),
            **options,
        )
    )


def vae() -> Any:
    """A VAE that reduces sides by eight."""
    made: Any = diffusers.AutoencoderKL
    return made(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
    )


def sd(folder: Path, *, scheduler: dict[str, Any] | None = None, pad: str = END, **options: Any) -> Any:
    """A Stable Diffusion 1 or 2 pipeline, saved to ``folder``."""
    torch.manual_seed(0)
    kind: Any = diffusers.StableDiffusionPipeline
    sampler: Any = getattr(diffusers, (scheduler or {}).get("_class_name", "DDIMScheduler"))
    made = kind(
        vae=vae(),
        text_encoder=text_encoder(16),
        tokenizer=tokenizer(pad),
        unet=unet(16, **options),
        scheduler=sampler.from_config({**SCHEDULER, **(scheduler or {})}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(made, folder)


def sdxl(folder: Path, *, force_zeros: bool = True, scheduler: dict[str, Any] | None = None, **options: Any) -> Any:
    """A Stable Diffusion XL pipeline, saved to ``folder``."""
    torch.manual_seed(1)
    kind: Any = diffusers.StableDiffusionXLPipeline
    euler: Any = diffusers.EulerDiscreteScheduler
    made = kind(
        vae=vae(),
        text_encoder=text_encoder(16),
        text_encoder_2=text_encoder(24, projection=12),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer("!"),
        unet=unet(
            40,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 12,
            transformer_layers_per_block=(1, 2),
            **options,
        ),
        # As published ones do, the configuration keeps what other schedulers read.
        scheduler=euler.from_config({**SCHEDULER, **(scheduler or {})}),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    return saved(made, folder)


def controlnet(folder: Path, unet: Any, seed: int) -> Any:
    """A ControlNet for a U-Net, saved to ``folder``; its last layers, zero when training begins, are random."""
    torch.manual_seed(seed)
    kind: Any = diffusers.ControlNetModel
    made = kind.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8), load_weights_from_unet=False)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    made.save_pretrained(folder, safe_serialization=True)
    return kind.from_pretrained(folder, local_files_only=True)


def lively(module: Any) -> Any:
    """Random biases too: fresh ones are zero, and would hide a layer that is skipped."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def saved(pipeline: Any, folder: Path, **given: Any) -> Any:
    """The pipeline as a user would load it: its configurations then say the same as the folder's."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    loaded = type(pipeline).from_pretrained(folder, local_files_only=True, **given)
    loaded.set_progress_bar_config(disable=True)
    return loaded
