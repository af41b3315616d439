"""Writes files with the names and shapes of ControlNets' tensors, a few of them and small: headers, not networks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import orjson
from safetensors.numpy import save_file

Layout = Literal["published", "diffusers"]
FILE = "diffusion_pytorch_model.safetensors"


def make_controlnet(path: Path, layout: Layout = "published", *, width: int = 768, **more: tuple[int, ...]) -> Path:
    """A single file; ``width`` is that of the text it reads, ``more`` are further tensors by name."""
    names = {
        "published": (
            "control_model.zero_convs.0.0.weight",
            "control_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        "diffusers": (
            "controlnet_down_blocks.0.weight",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        ),
    }
    zero, cross = names[layout]
    shapes = {zero: (4, 4, 1, 1), cross: (4, width), **more}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    return path


def make_folder(path: Path, kind: str = "ControlNetModel", *, width: int = 96, **config: object) -> Path:
    """A folder as diffusers writes it; a width that nobody published does not tell the family."""
    path.mkdir()
    if kind == "FluxControlNetModel":
        tensors = {"controlnet_x_embedder.weight": np.zeros((4, 4), np.float32)}
        save_file({**tensors, "controlnet_blocks.0.weight": np.zeros((4, 4), np.float32)}, path / FILE)
    else:
        make_controlnet(path / FILE, "diffusers", width=width)
    (path / "config.json").write_bytes(orjson.dumps({"_class_name": kind, **config}))
    return path
