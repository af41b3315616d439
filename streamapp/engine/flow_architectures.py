"""The architectures of Flux.1 and Stable Diffusion 3, as far as a single file does not show them.

A transformer's widths and depths are read from the shapes of its tensors, so that cut or widened ones load as well;
what shapes do not tell is what was published. Parameter counts of the published models are checked by the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from streamapp.engine.architectures import CLIP_G, CLIP_L
from streamapp.engine.errors import EngineError

Shapes = Mapping[str, tuple[int, ...]]
#: What a published file's transformer may be kept under: a whole checkpoint's, or nothing.
PREFIXES = ("model.diffusion_model.", "")
#: By family, a tensor that every file of it has.
MARKS = {"flux": "double_blocks.0.img_attn.qkv.weight", "sd3": "joint_blocks.0.x_block.attn.qkv.weight"}
TITLES = {"flux": "Flux.1", "sd3": "Stable Diffusion 3"}
#: A head's width in Stable Diffusion 3, where no norm of its queries shows it.
HEAD = 64

#: With sixteen channels, of both families; they differ in the factors.
VAE: Mapping[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
VAES: Mapping[str, Mapping[str, Any]] = {
    "flux": {**VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    "sd3": {**VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609},
}
FLOW: Mapping[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "sd3": {**FLOW, "shift": 3.0},
    "dev": {
        **FLOW,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    },
    "schnell": {
        **FLOW,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    },
}


@dataclass(frozen=True)
class FlowArchitecture:
    """Configurations of a checkpoint's components, ``clips`` by the component's name; T5's is read off its file."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    clips: Mapping[str, Mapping[str, Any]]
    scheduler: Mapping[str, Any]


def prefix_of(family: str, names: Any) -> str | None:
    """What the names of the transformer's tensors begin with; None for a file without one of this family."""
    return next((prefix for prefix in PREFIXES if f"{prefix}{MARKS[family]}" in names), None)


def flow_architecture(family: str, shapes: Shapes, name: str) -> FlowArchitecture:
    """The architecture of a file of the family, from its transformer's shapes (names without the prefix).

    Raises:
        EngineError: ``load_failed`` when they are not those of this family.
    """
    try:
        transformer = flux_transformer(shapes) if family == "flux" else sd3_transformer(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise EngineError("load_failed", f"{name} holds no whole {TITLES[family]} transformer: {error}") from error
    if family == "sd3":
        return FlowArchitecture(transformer, VAES["sd3"], {"clip_l": CLIP_L, "clip_g": CLIP_G}, SCHEDULERS["sd3"])
    schedule = SCHEDULERS["dev" if transformer["guidance_embeds"] else "schnell"]
    return FlowArchitecture(transformer, VAES["flux"], {"clip_l": CLIP_L}, schedule)


def flux_transformer(shapes: Shapes) -> dict[str, Any]:
    """Of ``FluxTransformer2DModel``; dev takes guidance as an input, schnell has no place for it."""
    width, channels = shapes["img_in.weight"]
    (head,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    # Sides of the picture turn seven sixteenths of a head each; the rest is the axis that Flux leaves at zero.
    side = head * 7 // 16 // 2 * 2
    out = shapes["final_layer.linear.weight"][0]
    return {
        "in_channels": channels,
        "out_channels": None if out == channels else out,
        "num_layers": _count(shapes, "double_blocks"),
        "num_single_layers": _count(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [head - 2 * side, side, side],
    }


def sd3_transformer(shapes: Shapes) -> dict[str, Any]:
    """Of ``SD3Transformer2DModel``: 3 medium, 3.5 medium (two attentions in its first blocks) and 3.5 large."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    normed = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    head = normed[0] if normed else HEAD
    layers = _count(shapes, "joint_blocks")
    twice = [i for i in range(layers) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes]
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": twice,
        "qk_norm": "rms_norm" if normed else None,
    }


def t5_encoder(shapes: Shapes) -> dict[str, Any]:
    """Of ``T5EncoderModel``: T5 v1.1 XXL's, or one of another size, from its shapes (names without the prefix)."""
    first = "encoder.block.0.layer"
    words, width = shapes["shared.weight"]
    buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
    gated = f"{first}.1.DenseReluDense.wi_0.weight" in shapes
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}.1.DenseReluDense.wo.weight"][1],
        "num_layers": _count({name.removeprefix("encoder."): shape for name, shape in shapes.items()}, "block"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }


def _count(shapes: Shapes, blocks: str) -> int:
    found = [int(name.split(".")[1]) for name in shapes if name.startswith(f"{blocks}.")]
    return 1 + max(found, default=-1)
