"""Writes a diffusers folder of Stable Diffusion as one file in the published layout, as web UIs read it.

The other direction of what diffusers converts, written from the module structure of the published code
(CompVis/latent-diffusion): ``input_blocks``, ``middle_block`` and ``output_blocks`` counted through.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_ldm(folder: Path, target: Path, **marks: torch.Tensor) -> Path:
    """Write the checkpoint in ``folder`` (Stable Diffusion 1, 2 or XL) to ``target``, with further tensors as they are.

    Tensors keep their types. What a file of this layout cannot hold, the tokenizer and the scheduler, stays behind.
    """
    weights = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder")}
    config = orjson.loads((folder / "unet" / "config.json").read_bytes())
    unet = {f"model.diffusion_model.{unet_name(name, config)}": t for name, t in weights["unet"].items()}
    levels = len(orjson.loads((folder / "vae" / "config.json").read_bytes())["block_out_channels"])
    vae = {}
    for name, tensor in weights["vae"].items():
        new = vae_name(name, levels)
        # Attention of the VAE is stored as 1x1 convolutions.
        square = ".mid.attn_1." in new and new.endswith(".weight") and tensor.ndim == 2
        vae[f"first_stage_model.{new}"] = tensor[:, :, None, None] if square else tensor
    second = folder / "text_encoder_2"
    first = "conditioner.embedders.0" if second.is_dir() else "cond_stage_model"
    text = {f"{first}.transformer.{name}": tensor for name, tensor in weights["text_encoder"].items()}
    if second.is_dir():
        found = open_clip(load_file(next(second.glob("*.safetensors"))))
        text |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in found.items()}
    whole = {name: tensor.contiguous().clone() for name, tensor in {**unet, **vae, **text, **marks}.items()}
    save_file(whole, target)
    return target


#: OpenCLIP's names of what transformers calls otherwise.
OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def open_clip(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A text encoder in OpenCLIP's layout: queries, keys and values in one matrix, the projection transposed."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
            continue
        new = name
        for theirs, ours in OPEN_CLIP.items():
            new = new.replace(theirs, ours)
        module, _, leaf = new.rpartition(".")
        if module.endswith(("k_proj", "v_proj")):
            continue
        if module.endswith("q_proj"):
            three = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[f"{module.removesuffix('q_proj')}in_proj_{leaf}"] = torch.cat(three)
        else:
            found[new] = tensor
    return found


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The published name of a parameter of diffusers' U-Net."""
    module, _, leaf = name.rpartition(".")
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{leaf}"
    parts = name.split(".")
    layers = config["layers_per_block"]
    match parts:
        case ["mid_block", "resnets", index, *rest]:
            return f"middle_block.{0 if index == '0' else 2}.{_resnet(rest)}"
        case ["mid_block", "attentions", _, *rest]:
            return f"middle_block.1.{'.'.join(rest)}"
        case ["down_blocks", level, kind, index, *rest]:
            block = 1 + int(level) * (layers + 1) + (layers if kind == "downsamplers" else int(index))
            inner = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
            return f"input_blocks.{block}.{inner}.{_inner(kind, rest)}"
        case ["up_blocks", level, kind, index, *rest]:
            block = int(level) * (layers + 1) + (layers if kind == "upsamplers" else int(index))
            attends = config["up_block_types"][int(level)].startswith("CrossAttn")
            inner = {"resnets": "0", "attentions": "1", "upsamplers": "2" if attends else "1"}[kind]
            return f"output_blocks.{block}.{inner}.{_inner(kind, rest)}"
    raise AssertionError(f"no published name for {name}")


def _inner(kind: str, rest: list[str]) -> str:
    if kind == "resnets":
        return _resnet(rest)
    if kind == "downsamplers":
        return f"op.{rest[-1]}"
    return ".".join(rest)


def _resnet(rest: list[str]) -> str:
    return f"{RESNET[rest[0]]}.{rest[1]}"


def vae_name(name: str, levels: int) -> str:
    """The published name of a parameter of diffusers' VAE."""
    side, *parts = name.replace("conv_shortcut", "nin_shortcut").split(".")
    match parts:
        case ["mid_block", "resnets", index, *rest]:
            new = ["mid", f"block_{int(index) + 1}", *rest]
        case ["mid_block", "attentions", _, *rest]:
            new = ["mid", "attn_1", VAE_ATTENTION[".".join(rest[:-1])], rest[-1]]
        case ["down_blocks", level, kind, index, *rest]:
            new = ["down", level, *(["block", index] if kind == "resnets" else ["downsample"]), *rest]
        case ["up_blocks", level, kind, index, *rest]:
            # Counted from the finest level here, from the coarsest there.
            inner = ["block", index] if kind == "resnets" else ["upsample"]
            new = ["up", str(levels - 1 - int(level)), *inner, *rest]
        case ["conv_norm_out", leaf]:
            new = ["norm_out", leaf]
        case _:
            new = parts
    return ".".join([side, *new])
