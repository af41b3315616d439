"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, U-Net, four-channel VAE (Rombach et al. 2022).

A sample's picture equals that of ``StableDiffusionPipeline`` called for it alone with
``torch.Generator("cpu").manual_seed(seed + i)``. v-prediction comes from the scheduler's configuration or the variant;
latent-consistency U-Nets take guidance as an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from streamapp.engine.clip import ClipEncoder
from streamapp.engine.families import Device
from streamapp.engine.folder import read_folder
from streamapp.engine.single_file import Components, read_single_file
from streamapp.engine.unet import UNetCheckpoint
from streamapp.engine.variants import scheduler_of

TEXTS = {"text_encoder": "tokenizer"}


def read(path: Path, device: Device, options: Mapping[str, Any]) -> Any:
    """Read a diffusers folder or a single safetensors file in the published layout, without any network.

    Raises:
        EngineError: ``load_failed`` with what is missing or unreadable.
    """
    torch.set_num_threads(device.threads)
    dtype, into = getattr(torch, device.dtype), options.get("into")
    if not path.is_file():
        return read_folder(path, dtype, TEXTS)
    again: dict[str, Any] = {"into": into} if isinstance(into, Components) else {}
    return read_single_file(path, dtype, **again)


def build(parts: Any, device: Device, options: Mapping[str, Any]) -> StableDiffusion1:
    """A checkpoint of components that are on the device."""
    ((tokenizer, text),) = parts.texts
    encoder = ClipEncoder("text_encoder", tokenizer, text)
    scheduler = scheduler_of(parts.scheduler, options.get("variant"))
    checkpoint = StableDiffusion1(device, [encoder], parts.unet, parts.vae, scheduler)
    checkpoint.controls = options.get("controls", {})
    return checkpoint


class StableDiffusion1(UNetCheckpoint):
    """A loaded checkpoint: everything is what families with a U-Net share."""

    family = "sd15"
