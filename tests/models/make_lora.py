"""Writes small LoRAs for the pocket model's U-Net, with fixed random factors, in the layouts that are in use.

``python -m tests.models.make_lora FOLDER`` writes one of each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from streamapp.models.catalogue import HERE
from streamapp.models.safe import read_header

UNET = HERE / "pocket" / "unet" / "diffusion_pytorch_model.safetensors"
Layout = Literal["kohya", "diffusers"]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def attention_layers() -> dict[str, tuple[int, int]]:
    """The pocket U-Net's attention projections: module path to ``(out, in)`` features."""
    layers = {}
    for name, entry in read_header(UNET).items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and ".attn" in module and module.endswith(TARGETS):
            layers[module] = (int(entry["shape"][0]), int(entry["shape"][1]))
    return layers


def make_lora(
    path: Path, layout: Layout = "kohya", *, seed: int = 0, rank: int = 4, alpha: float | None = None, gain: float = 1.0
) -> Path:
    """Write a LoRA to ``path``; the same arguments give the same bytes, both layouts the same effect.

    Args:
        path: file to write, ``.safetensors``.
        layout: ``kohya`` (``lora_unet_…lora_down/up`` with ``alpha``) or ``diffusers`` (``unet.…lora_A/B``).
        seed: of the factors; the effect is plainly visible with any.
        rank: inner dimension.
        alpha: kohya's scale times ``rank``; by default ``rank``. The diffusers layout has it multiplied in.
        gain: multiplies the effect; 0 makes a LoRA that changes nothing.
    """
    alpha = float(rank) if alpha is None else alpha
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for module, (features_out, features_in) in attention_layers().items():
        down = (random.standard_normal((rank, features_in)) / np.sqrt(features_in)).astype(np.float32)
        up = (random.standard_normal((features_out, rank)) * 0.15 * gain).astype(np.float32)
        if layout == "kohya":
            name = f"lora_unet_{module.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = down
            tensors[f"{name}.lora_up.weight"] = up
            tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
        else:
            tensors[f"unet.{module}.lora_A.weight"] = down
            tensors[f"unet.{module}.lora_B.weight"] = (up * (alpha / rank)).astype(np.float32)
    metadata = {"format": "pt"}
    if layout == "kohya":
        metadata |= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(alpha),
            "modelspec.trigger_phrase": "pocket style, wobbly",
        }
    # safetensors' own writer orders metadata at random, and digests are of bytes.
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    raw = orjson.dumps(header)
    raw += b" " * (-len(raw) % 8)
    body = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return path


if __name__ == "__main__":
    for kind in get_args(Layout):
        make_lora(Path(sys.argv[1]) / f"{kind}.safetensors", kind)
