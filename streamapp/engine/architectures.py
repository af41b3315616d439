"""The architectures of published checkpoints, which a single file does not bring along.

Widths and depths are those of the published models; the classes of diffusers and transformers supply everything else.
Parameter counts are checked by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from streamapp.engine.errors import EngineError

UNET = "model.diffusion_model."


@dataclass(frozen=True)
class Text:
    """A text encoder: its configuration, and where and how a single file keeps it.

    Attributes:
        prefix: what the names of its tensors begin with.
        open_clip: whether it is in OpenCLIP's layout, not in that of transformers.
        pools: whether its projection counts, for a pooled vector.
    """

    config: Mapping[str, Any]
    prefix: str = "cond_stage_model."
    open_clip: bool = False
    pools: bool = False


@dataclass(frozen=True)
class Architecture:
    """Configurations of a checkpoint's components, text encoders in the order in which their encodings are joined."""

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: tuple[Text, ...]
    scheduler: Mapping[str, Any]


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
#: OpenCLIP's ViT-bigG, SDXL's second encoder.
CLIP_G: Mapping[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
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
    return Architecture("sd15", unet, VAE, (Text(CLIP_L),), SCHEDULER)


def sd2(channels: int = 4) -> Architecture:
    """Stable Diffusion 2.x."""
    unet = {
        "sample_size": 96,
        "in_channels": channels,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    }
    return Architecture("sd2", unet, VAE, (Text(CLIP_H, open_clip=True),), SCHEDULER)


def sdxl(channels: int = 4) -> Architecture:
    """Stable Diffusion XL."""
    unet = {
        "sample_size": 128,
        "in_channels": channels,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    vae = {**VAE, "sample_size": 1024, "scaling_factor": 0.13025}
    texts = (
        Text(CLIP_L, prefix="conditioner.embedders.0."),
        Text(CLIP_G, prefix="conditioner.embedders.1.", open_clip=True, pools=True),
    )
    scheduler = {**SCHEDULER, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    return Architecture("sdxl", unet, vae, texts, scheduler)


#: By family, by the width of the text that the U-Net reads.
WIDTHS: Mapping[str, Mapping[int, Callable[[int], Architecture]]] = {
    "sd15": {768: sd15, 1024: sd2},
    "sdxl": {2048: sdxl},
}
TITLES = {"sd15": "Stable Diffusion 1 or 2", "sdxl": "Stable Diffusion XL"}


def architecture_of(shapes: Mapping[str, tuple[int, ...]], name: str, family: str = "sd15") -> Architecture:
    """The architecture of a file of the family, from the shapes of its tensors.

    Raises:
        EngineError: ``load_failed`` when it holds no U-Net of this family.
    """
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    cross = shapes.get(f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight")
    found = WIDTHS[family].get(cross[-1]) if cross else None
    if first is None or found is None:
        raise EngineError("load_failed", f"{name} holds no {TITLES[family]} U-Net")
    return found(first[1])
