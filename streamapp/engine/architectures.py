"""The architectures of published checkpoints, which a single file does not bring along.

Widths and depths are those of the published models; the classes of diffusers and transformers supply everything else.
Parameter counts are checked by the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamapp.engine.errors import EngineError

UNET = "model.diffusion_model."


@dataclass(frozen=True)
class Architecture:
    """Configurations of a checkpoint's components; ``open_clip`` says in which layout the text encoder is stored."""

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    open_clip: bool = False


#: Of Stable Diffusion 1 to XL; the last factor is what latents are multiplied by.
VAE: Mapping[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
CLIP_L: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
    "bos_token_id": 49406,
}
#: OpenCLIP's ViT-H, of which Stable Diffusion 2 uses all layers but the last.
CLIP_H: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
    "eos_token_id": 49407,
    "bos_token_id": 49406,
}
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
    "prediction_type": "epsilon",
}


def sd15(channels: int = 4) -> Architecture:
    """Stable Diffusion 1.x; nine input channels are its inpainting form."""
    unet = {"sample_size": 64, "in_channels": channels, "cross_attention_dim": 768, "attention_head_dim": 8}
    return Architecture("sd15", unet, VAE, CLIP_L, SCHEDULER)


def sd2(channels: int = 4) -> Architecture:
    """Stable Diffusion 2.x."""
    unet = {
        "sample_size": 96,
        "in_channels": channels,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    }
    return Architecture("sd2", unet, VAE, CLIP_H, SCHEDULER, open_clip=True)


def architecture_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> Architecture:
    """The architecture of a file of the family, from the shapes of its tensors.

    Raises:
        EngineError: ``load_failed`` when it holds no U-Net of this family.
    """
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    cross = shapes.get(f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight")
    found = {768: sd15, 1024: sd2}.get(cross[-1]) if cross else None
    if first is None or found is None:
        raise EngineError("load_failed", f"{name} holds no Stable Diffusion 1 or 2 U-Net")
    return found(first[1])
