"""Stable Diffusion XL: two CLIP text encoders, pooled text and picture size as further conditions (Podell et al. 2023).

A sample's picture equals that of ``StableDiffusionXLPipeline`` called for it alone with
``torch.Generator("cpu").manual_seed(seed + i)``: an absent negative prompt is zeros where the checkpoint says so, an
empty one is encoded. Turbo, Lightning, LCM, v-prediction and zero terminal SNR come from the variant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from streamapp.engine.adapters import Combination
from streamapp.engine.clip import ClipEncoder, Conditioning
from streamapp.engine.families import Device
from streamapp.engine.folder import Folder, read_folder
from streamapp.engine.sample import Sample
from streamapp.engine.single_file import Components, read_single_file
from streamapp.engine.unet import UNetCheckpoint
from streamapp.engine.variants import scheduler_of

TEXTS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


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
    return read_single_file(path, dtype, "sdxl", **again)


def build(parts: Any, device: Device, options: Mapping[str, Any]) -> StableDiffusionXL:
    """A checkpoint of components that are on the device."""
    # SDXL was trained on the state before the last layer of both encoders, without the last normalisation.
    encoders = [
        ClipEncoder(part, tokenizer, text, layer=2, norm=False)
        for part, (tokenizer, text) in zip(TEXTS, parts.texts, strict=True)
    ]
    scheduler = scheduler_of(parts.scheduler, options.get("variant"))
    checkpoint = StableDiffusionXL(device, encoders, parts.unet, parts.vae, scheduler)
    checkpoint.controls = options.get("controls", {})
    if isinstance(parts, Folder):  # a single file does not say; every published one wants them
        checkpoint.zeros_for_absent = bool(parts.index.get("force_zeros_for_empty_prompt", True))
    return checkpoint


class StableDiffusionXL(UNetCheckpoint):
    """A loaded checkpoint."""

    family = "sdxl"
    lora_loader = "StableDiffusionXLLoraLoaderMixin"
    zeros_for_absent = True

    def _encode(self, texts: Sequence[str], clip_skip: int, adapters: Combination) -> Sequence[Conditioning]:
        """Both encoders' states side by side, the second one's pooled vector."""
        first, second = (encoder.encode(texts, clip_skip, adapters, self._adapters) for encoder in self._encoders)
        return [_joined(a, b) for a, b in zip(first, second, strict=True)]

    def _negative(self, job: Any) -> str | None:
        """None only where nothing was given: an empty text is encoded."""
        if job.negative_prompt is None and self.zeros_for_absent:
            return None
        return str(job.negative_prompt or "")

    def _added(self, order: Sequence[Sample], conditions: Sequence[Conditioning]) -> dict[str, torch.Tensor]:
        """Pooled text, and sizes: the original, the crop's corner and the target, all of the picture itself."""
        sizes = [[s.job.height, s.job.width, 0, 0, s.job.height, s.job.width] for s in order]
        pooled = [condition.pooled for condition in conditions if condition.pooled is not None]
        time_ids = torch.tensor(sizes, dtype=torch.float32, device=pooled[0].device)
        return {"text_embeds": torch.stack(pooled), "time_ids": time_ids}


def _joined(first: Conditioning, second: Conditioning) -> Conditioning:
    """Two encoders' view of one prompt; where one cut it into more windows, the other has zeros there."""
    missing = second.text.shape[0] - first.text.shape[0]
    texts = [
        torch.nn.functional.pad(text, (0, 0, 0, max(0, short)))
        for text, short in ((first.text, missing), (second.text, -missing))
    ]
    return Conditioning(torch.cat(texts, dim=-1), second.pooled)
