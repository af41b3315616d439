"""Writes a diffusers folder of Flux or Stable Diffusion 3 as one file in its publisher's layout: the loader's fixture.

Written from the publishers' modules (black-forest-labs/flux, Stability-AI/sd3.5), in the other direction than the
loader, which it shares nothing with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import orjson
import torch
from safetensors.torch import load_file, save_file

from streamapp.training.ldm_file import vae_name

Tensors = dict[str, torch.Tensor]
#: Of Flux: pattern of the diffusers name and the publisher's; joined matrices are made apart.
FLUX = {
    r"x_embedder\.(\w+)": r"img_in.\1",
    r"context_embedder\.(\w+)": r"txt_in.\1",
    r"proj_out\.(\w+)": r"final_layer.linear.\1",
    r"norm_out\.linear\.(\w+)": r"final_layer.adaLN_modulation.1.\1",
    r"time_text_embed\.timestep_embedder\.linear_1\.(\w+)": r"time_in.in_layer.\1",
    r"time_text_embed\.timestep_embedder\.linear_2\.(\w+)": r"time_in.out_layer.\1",
    r"time_text_embed\.text_embedder\.linear_1\.(\w+)": r"vector_in.in_layer.\1",
    r"time_text_embed\.text_embedder\.linear_2\.(\w+)": r"vector_in.out_layer.\1",
    r"time_text_embed\.guidance_embedder\.linear_1\.(\w+)": r"guidance_in.in_layer.\1",
    r"time_text_embed\.guidance_embedder\.linear_2\.(\w+)": r"guidance_in.out_layer.\1",
    r"transformer_blocks\.(\d+)\.norm1\.linear\.(\w+)": r"double_blocks.\1.img_mod.lin.\2",
    r"transformer_blocks\.(\d+)\.norm1_context\.linear\.(\w+)": r"double_blocks.\1.txt_mod.lin.\2",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.(\w+)": r"double_blocks.\1.img_mlp.0.\2",
    r"transformer_blocks\.(\d+)\.ff\.net\.2\.(\w+)": r"double_blocks.\1.img_mlp.2.\2",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj\.(\w+)": r"double_blocks.\1.txt_mlp.0.\2",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.2\.(\w+)": r"double_blocks.\1.txt_mlp.2.\2",
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0\.(\w+)": r"double_blocks.\1.img_attn.proj.\2",
    r"transformer_blocks\.(\d+)\.attn\.to_add_out\.(\w+)": r"double_blocks.\1.txt_attn.proj.\2",
    r"transformer_blocks\.(\d+)\.attn\.norm_q\.weight": r"double_blocks.\1.img_attn.norm.query_norm.scale",
    r"transformer_blocks\.(\d+)\.attn\.norm_k\.weight": r"double_blocks.\1.img_attn.norm.key_norm.scale",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_q\.weight": r"double_blocks.\1.txt_attn.norm.query_norm.scale",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_k\.weight": r"double_blocks.\1.txt_attn.norm.key_norm.scale",
    r"single_transformer_blocks\.(\d+)\.norm\.linear\.(\w+)": r"single_blocks.\1.modulation.lin.\2",
    r"single_transformer_blocks\.(\d+)\.proj_out\.(\w+)": r"single_blocks.\1.linear2.\2",
    r"single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight": r"single_blocks.\1.norm.query_norm.scale",
    r"single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight": r"single_blocks.\1.norm.key_norm.scale",
}
SD3 = {
    r"pos_embed\.pos_embed": r"pos_embed",
    r"pos_embed\.proj\.(\w+)": r"x_embedder.proj.\1",
    r"context_embedder\.(\w+)": r"context_embedder.\1",
    r"proj_out\.(\w+)": r"final_layer.linear.\1",
    r"norm_out\.linear\.(\w+)": r"final_layer.adaLN_modulation.1.\1",
    r"time_text_embed\.timestep_embedder\.linear_1\.(\w+)": r"t_embedder.mlp.0.\1",
    r"time_text_embed\.timestep_embedder\.linear_2\.(\w+)": r"t_embedder.mlp.2.\1",
    r"time_text_embed\.text_embedder\.linear_1\.(\w+)": r"y_embedder.mlp.0.\1",
    r"time_text_embed\.text_embedder\.linear_2\.(\w+)": r"y_embedder.mlp.2.\1",
    r"transformer_blocks\.(\d+)\.norm1\.linear\.(\w+)": r"joint_blocks.\1.x_block.adaLN_modulation.1.\2",
    r"transformer_blocks\.(\d+)\.norm1_context\.linear\.(\w+)": r"joint_blocks.\1.context_block.adaLN_modulation.1.\2",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.(\w+)": r"joint_blocks.\1.x_block.mlp.fc1.\2",
    r"transformer_blocks\.(\d+)\.ff\.net\.2\.(\w+)": r"joint_blocks.\1.x_block.mlp.fc2.\2",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj\.(\w+)": r"joint_blocks.\1.context_block.mlp.fc1.\2",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.2\.(\w+)": r"joint_blocks.\1.context_block.mlp.fc2.\2",
    r"transformer_blocks\.(\d+)\.attn(2?)\.to_out\.0\.(\w+)": r"joint_blocks.\1.x_block.attn\2.proj.\3",
    r"transformer_blocks\.(\d+)\.attn\.to_add_out\.(\w+)": r"joint_blocks.\1.context_block.attn.proj.\2",
    r"transformer_blocks\.(\d+)\.attn(2?)\.norm_([qk])\.weight": r"joint_blocks.\1.x_block.attn\2.ln_\3.weight",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_([qk])\.weight": r"joint_blocks.\1.context_block.attn.ln_\2.weight",
}
NAMES = {"flux": FLUX, "sd3": SD3}
#: The first of the matrices that are joined, the others, and where they go.
JOINED = {
    "flux": (
        (r"transformer_blocks\.(\d+)\.attn\.to_q\.(\w+)", ("to_k", "to_v"), r"double_blocks.\1.img_attn.qkv.\2"),
        (
            r"transformer_blocks\.(\d+)\.attn\.add_q_proj\.(\w+)",
            ("add_k_proj", "add_v_proj"),
            r"double_blocks.\1.txt_attn.qkv.\2",
        ),
        (
            r"single_transformer_blocks\.(\d+)\.attn\.to_q\.(\w+)",
            ("to_k", "to_v", "../proj_mlp"),
            r"single_blocks.\1.linear1.\2",
        ),
    ),
    "sd3": (
        (
            r"transformer_blocks\.(\d+)\.attn(2?)\.to_q\.(\w+)",
            ("to_k", "to_v"),
            r"joint_blocks.\1.x_block.attn\2.qkv.\3",
        ),
        (
            r"transformer_blocks\.(\d+)\.attn\.add_q_proj\.(\w+)",
            ("add_k_proj", "add_v_proj"),
            r"joint_blocks.\1.context_block.attn.qkv.\2",
        ),
    ),
}


def transformer(weights: Mapping[str, torch.Tensor], family: str) -> Tensors:
    """A diffusers transformer's weights in its publisher's layout."""
    made: Tensors = {}
    for name, tensor in weights.items():
        for pattern, theirs in NAMES[family].items():
            if re.fullmatch(pattern, name):
                new = re.sub(pattern, theirs, name)
                made[new] = _turned(tensor) if _final(new, weights) else tensor
        for pattern, others, theirs in JOINED[family]:
            if re.fullmatch(pattern, name):
                module, first, leaf = name.rsplit(".", 2)
                further = [
                    f"{module.rpartition('.')[0]}.{other[3:]}" if other.startswith("../") else f"{module}.{other}"
                    for other in others
                ]
                assert first in {"to_q", "add_q_proj"}
                made[re.sub(pattern, theirs, name)] = torch.cat([tensor, *(weights[f"{m}.{leaf}"] for m in further)])
    return made


def _final(new: str, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether this modulation is a last one, whose halves diffusers has the other way round."""
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    return new.startswith(("final_layer.adaLN", f"joint_blocks.{last}.context_block.adaLN"))


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    scale, shift = tensor.chunk(2)
    return torch.cat([shift, scale])


def vae(folder: Path) -> Tensors:
    """A VAE of the folder in the published layout, names as in a file of its own."""
    levels = len(orjson.loads((folder / "config.json").read_bytes())["block_out_channels"])
    made: Tensors = {}
    for name, tensor in _weights(folder).items():
        new = vae_name(name, levels)
        square = ".mid.attn_1." in new and new.endswith(".weight") and tensor.ndim == 2
        made[new] = tensor[:, :, None, None] if square else tensor
    return made


def write(
    folder: Path, target: Path, family: str, *, whole: bool = True, prefix: str = "model.diffusion_model."
) -> Path:
    """Write the checkpoint in ``folder``; its transformer only unless ``whole``."""
    made = {f"{prefix}{name}": t for name, t in transformer(_weights(folder / "transformer"), family).items()}
    if whole:
        begin = "vae." if family == "flux" else "first_stage_model."
        made |= {f"{begin}{name}": tensor for name, tensor in vae(folder / "vae").items()}
        for part, kept in parts(family).items():
            if kept != "vae" and (folder / part).is_dir():
                word = "t5xxl" if kept == "t5" else kept
                begin = f"text_encoders.{word}."
                made |= {f"{begin}transformer.{name}": t for name, t in _weights(folder / part).items()}
                made[f"{begin}logit_scale"] = torch.tensor(4.6)
    save_file({name: tensor.contiguous().clone() for name, tensor in made.items()}, target)
    return target


def parts(family: str) -> dict[str, str]:
    """The folders of a checkpoint's components and what they are called elsewhere."""
    if family == "flux":
        return {"text_encoder": "clip_l", "text_encoder_2": "t5", "vae": "vae"}
    return {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5", "vae": "vae"}


def _weights(folder: Path) -> Tensors:
    return load_file(next(folder.glob("*.safetensors")))
