"""Writes checkpoints of published size as single files in the published layouts, tensor by tensor, of random values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import orjson
import torch
import transformers

from streamapp.engine import architectures
from streamapp.training.ldm_file import open_clip, unet_name, vae_name
from tests.engine import flow_file_writer

Shapes = dict[str, tuple[int, ...]]
#: Random numbers that tensors are cut from.
POOL = 1 << 22


def stable_diffusion(family: str) -> Shapes:
    """Names and shapes of a whole checkpoint of Stable Diffusion 1 or XL."""
    parts = getattr(architectures, family)()
    unet: Any = diffusers.UNet2DConditionModel
    vae: Any = diffusers.AutoencoderKL
    with torch.device("meta"):
        denoiser, decoder = unet(**parts.unet), vae(**parts.vae)
    shapes: Shapes = {}
    for name, tensor in denoiser.state_dict().items():
        shapes[f"model.diffusion_model.{unet_name(name, denoiser.config)}"] = tuple(tensor.shape)
    levels = len(decoder.config["block_out_channels"])
    for name, tensor in decoder.state_dict().items():
        new = vae_name(name, levels)
        square = ".mid.attn_1." in new and new.endswith(".weight") and tensor.ndim == 2
        shapes[f"first_stage_model.{new}"] = (*tensor.shape, 1, 1) if square else tuple(tensor.shape)
    for text in parts.texts:
        shapes |= _text(text)
    return shapes


def _text(text: architectures.Text) -> Shapes:
    library: Any = transformers
    kind = library.CLIPTextModelWithProjection if text.pools else library.CLIPTextModel
    with torch.device("meta"):
        state = kind(library.CLIPTextConfig(**text.config)).state_dict()
    if text.open_clip:
        return {f"{text.prefix}model.{name}": tuple(tensor.shape) for name, tensor in open_clip(state).items()}
    return {f"{text.prefix}transformer.{name}": tuple(tensor.shape) for name, tensor in state.items()}


def flux_transformer(config: Mapping[str, Any]) -> Any:
    """A Flux transformer with random weights in half precision."""
    made: Any = diffusers.FluxTransformer2DModel
    with torch.device("meta"):
        module = made(**config)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    weights = {name: torch.from_numpy(values).view(shapes[name]) for name, values in _values(shapes)}
    module.load_state_dict(weights, assign=True)
    return module


def write_flux(module: Any, target: Path) -> None:
    """The same in Black Forest Labs' layout."""
    from safetensors.torch import save_file

    save_file(flow_file_writer.transformer(module.state_dict(), "flux"), target)


def write(shapes: Shapes, target: Path) -> int:
    """Write a file of half-precision tensors of these shapes; its bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    raw = orjson.dumps(header)
    raw += b" " * (-len(raw) % 8)
    with target.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for _, values in _values(shapes):
            file.write(values.data)
    return 8 + len(raw) + end


def _values(shapes: Shapes) -> Iterator[tuple[str, Any]]:
    """One tensor after the other: norms near one, biases near zero, the rest as fresh layers have them."""
    pool = np.random.default_rng(7).standard_normal(POOL, dtype=np.float32)
    for number, (name, shape) in enumerate(shapes.items()):
        count = math.prod(shape)
        start = number * 7919 % POOL
        values = np.resize(np.roll(pool, -start)[: min(count, POOL)], count)
        if len(shape) < 2:
            values = values * 0.02 + (1.0 if name.endswith(("weight", "scale")) else 0.0)
        else:
            values = values / math.sqrt(math.prod(shape[1:]))
        yield name, values.astype(np.float16)
