"""What a safetensors file holds, from its header alone: a checkpoint, a LoRA or something else, and of which family.

The keys are those of the published layouts (CompVis, Stability AI, Black Forest Labs; kohya's and diffusers' LoRAs).
Variants that tensors do not show (turbo, lightning, v-prediction) are for the model's row to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["model", "lora", "vae", "textual_inversion", "controlnet", "unknown"]

_UNET = "model.diffusion_model."
#: Cross-attention keys read the text encoder's width: 768 CLIP-L, 1024 OpenCLIP-H, 2048 both encoders of SDXL.
_WIDTHS = {768: "sd15", 1024: "sd15", 2048: "sdxl"}
_CROSS = re.compile(r"attn2[._]to_k[._](?:lora_down|lora_A|lora\.down)(?:\.default)?\.weight\Z")
#: What only ControlNets have: in the published layout a prefix or these layers, in diffusers' these names.
_ADDED = re.compile(r"control_model\.|zero_convs\.0\.0\.|controlnet_")
_DOWN = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a")


@dataclass(frozen=True, slots=True)
class Described:
    """Kind and family (``None``: cannot be told) of a file, and what else its tensors say."""

    kind: Kind
    family: str | None
    traits: dict[str, Any] = field(default_factory=dict)


def describe(header: Mapping[str, Any]) -> Described:
    """What a header (see :func:`streamapp.models.safe.read_header`) says of its file."""
    shapes = {name: tuple(entry.get("shape") or ()) for name, entry in header.items() if name != "__metadata__"}
    if any(name.endswith(_DOWN) for name in shapes):
        return Described("lora", _lora_family(shapes))
    for look in (_controlnet, _flux, _sd3, _qwen, _unet):
        found = look(shapes)
        if found is not None:
            return found
    if "emb_params" in shapes or {"clip_l", "clip_g"} & shapes.keys():
        return Described("textual_inversion", "sdxl" if "clip_g" in shapes else "sd15")
    if any(name.startswith(("encoder.", "first_stage_model.encoder.")) for name in shapes):
        return Described("vae", None)
    return Described("unknown", None)


#: Components by what the names of their tensors begin with, in files of several.
_FILED = {
    "vae": ("first_stage_model.", "vae."),
    "clip_l": ("text_encoders.clip_l.",),
    "clip_g": ("text_encoders.clip_g.",),
    "t5": ("text_encoders.t5xxl.",),
}


def _lacks(shapes: Mapping[str, tuple[int, ...]], *needed: str) -> dict[str, Any]:
    """Which of the components that it cannot draw without a file does not hold, as a trait."""
    lacking = [part for part in needed if not any(name.startswith(_FILED[part]) for name in shapes)]
    return {"lacks": lacking} if lacking else {}


def _controlnet(shapes: Mapping[str, tuple[int, ...]]) -> Described | None:
    """Before models: a ControlNet is a copy of a half of one. ``unlike`` says what it is that is not a whole one."""
    if "lora_controlnet" in shapes:
        return Described("controlnet", None, {"unlike": "a Control-LoRA"})
    if any(name.startswith("lllite_") for name in shapes):
        return Described("controlnet", None, {"unlike": "a ControlNet-LLLite"})
    if not any(_ADDED.match(name) for name in shapes):
        return None
    if "controlnet_x_embedder.weight" in shapes:
        return Described("controlnet", "qwen_image" if "txt_norm.weight" in shapes else "flux")
    if "pos_embed_input.proj.weight" in shapes:
        return Described("controlnet", "sd3")
    unlike: dict[str, Any] = {"unlike": "the difference to a checkpoint"} if "difference" in shapes else {}
    if any("task_embedding" in name or name.startswith("control_add_embedding.") for name in shapes):
        unlike = {"unlike": "a union of ControlNets for Stable Diffusion XL"}
    widths = {shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and shape}
    width = widths.pop() if len(widths) == 1 else 0
    return Described("controlnet", _WIDTHS.get(width), {**({"variant": "sd2"} if width == 1024 else {}), **unlike})


def _flux(shapes: Mapping[str, tuple[int, ...]]) -> Described | None:
    for prefix in ("", _UNET):
        if f"{prefix}double_blocks.0.img_attn.norm.key_norm.scale" in shapes:
            guided = f"{prefix}guidance_in.in_layer.weight" in shapes
            variant = {"variant": "dev" if guided else "schnell"}
            return Described("model", "flux", {**variant, **_lacks(shapes, "vae", "clip_l", "t5")})
    return None


def _sd3(shapes: Mapping[str, tuple[int, ...]]) -> Described | None:
    for prefix in ("", _UNET):
        if f"{prefix}joint_blocks.0.context_block.adaLN_modulation.1.bias" in shapes:
            return Described("model", "sd3", _lacks(shapes, "vae", "clip_l", "clip_g"))
    return None


def _qwen(shapes: Mapping[str, tuple[int, ...]]) -> Described | None:
    for prefix in ("", _UNET):
        if {f"{prefix}transformer_blocks.0.img_mod.1.weight", f"{prefix}txt_norm.weight"} <= shapes.keys():
            return Described("model", "qwen_image")
    return None


def _unet(shapes: Mapping[str, tuple[int, ...]]) -> Described | None:
    """Stable Diffusion 1, 2 and XL share one layout and differ in widths."""
    first = shapes.get(f"{_UNET}input_blocks.0.0.weight")
    cross = shapes.get(f"{_UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight")
    if first is None or cross is None or len(first) != 4:
        return None
    if cross[-1] == 1280:
        return Described("model", None, {"variant": "sdxl-refiner"})
    traits: dict[str, Any] = {}
    if first[1] == 9:
        traits["inpainting"] = True
    if cross[-1] == 1024:
        traits["variant"] = "sd2"
    # Written by trainers of v-prediction models, as an empty tensor.
    if "v_pred" in shapes:
        traits["prediction"] = "v_prediction"
    if "ztsnr" in shapes:
        traits["zero_snr"] = True
    return Described("model", _WIDTHS.get(cross[-1]), traits)


def _lora_family(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    names = " ".join(shapes)
    if "double_blocks" in names or "single_transformer_blocks" in names:
        return "flux"
    if "joint_blocks" in names:
        return "sd3"
    if "lora_te2_" in names or "text_encoder_2." in names:
        return "sdxl"
    for name, shape in shapes.items():
        if _CROSS.search(name) and len(shape) >= 2:
            return _WIDTHS.get(shape[1])
    if "img_mlp" in names or ".add_q_proj" in names:
        return "qwen_image" if "img_mlp" in names else "sd3"
    return None
