"""Stable Diffusion 3 and 3.5: two CLIP encoders and T5, which may be absent, MMDiT, a VAE (Esser et al. 2024).

A sample's latent equals that of ``StableDiffusion3Pipeline`` called for it alone with
``torch.Generator("cpu").manual_seed(seed + i)``: prompts are cut where the encoders end, an absent negative prompt is
an empty one, ``clip_skip`` skips layers of both CLIP encoders for the positive prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from streamapp.engine.adapters import Combination
from streamapp.engine.clip import Conditioning
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device
from streamapp.engine.flow_file import read_flow_file
from streamapp.engine.mmdit import TOKEN, MMDiTCheckpoint, half, token_ids
from streamapp.engine.pipeline_folder import Part, read_parts
from streamapp.engine.sample import Sample

CLIPS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
T5, T5_TOKENIZER = "text_encoder_3", "tokenizer_3"
#: Distilled to few steps: drawn as the others, with other defaults.
VARIANTS = frozenset({"turbo", "lightning", "hyper"})
#: Tokens of T5, as the pipeline's default.
T5_LENGTH = 256


def read(path: Path, device: Device, options: Mapping[str, Any]) -> Any:
    """Read a diffusers folder or a single file, without any network.

    Raises:
        EngineError: ``load_failed`` with what is missing or unreadable.
    """
    variant = options.get("variant")
    if variant is not None and variant not in VARIANTS:
        raise EngineError("load_failed", f"sd3 has no variant {variant!r}; known: {', '.join(sorted(VARIANTS))}")
    torch.set_num_threads(device.threads)
    dtype = half(device)
    if path.is_file():
        return read_flow_file(path, "sd3", dtype, options.get("components"))
    parts, scheduler = read_parts(
        path,
        {
            **{name: Part("transformers", "CLIPTokenizer") for name in CLIPS.values()},
            **{name: Part("transformers", "CLIPTextModelWithProjection", dtype) for name in CLIPS},
            T5_TOKENIZER: Part("transformers", "T5TokenizerFast", optional=True),
            T5: Part("transformers", "T5EncoderModel", dtype, optional=True),
            "transformer": Part("diffusers", "SD3Transformer2DModel", dtype),
            "vae": Part("diffusers", "AutoencoderKL", torch.float32),
        },
    )
    return parts, scheduler


def build(parts: Any, device: Device, options: Mapping[str, Any]) -> StableDiffusion3:
    """A checkpoint of components that are on the device."""
    del options
    return StableDiffusion3(device, *parts)


class StableDiffusion3(MMDiTCheckpoint):
    """A loaded checkpoint."""

    family = "sd3"
    lora_loader = "SD3LoraLoaderMixin"
    skips = True
    most_shift = 1.16

    def __init__(self, device: Device, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        texts = {name: parts[name] for name in (*CLIPS, T5) if parts[name] is not None}
        super().__init__(device, texts, tuple(CLIPS), parts["transformer"], parts["vae"], scheduler)
        self._tokenizers = {name: parts[name] for name in (*CLIPS.values(), T5_TOKENIZER)}

    def validate(self, job: Any) -> None:
        """Also: both encoders have the layers that are skipped, and the transformer has places for the sides."""
        super().validate(job)
        longest = TOKEN * int(self._transformer.config.pos_embed_max_size)
        if max(job.width, job.height) > longest:
            message = f"{job.width}x{job.height}: this checkpoint draws sides of at most {longest} pixels"
            raise EngineError("invalid_job", message, field="width")
        most = min(int(self._modules[part].config.num_hidden_layers) for part in CLIPS)
        if job.clip_skip > most:
            message = f"clip_skip is {job.clip_skip}, this checkpoint's text encoders take 1 to {most}"
            raise EngineError("invalid_job", message, field="clip_skip")

    def key(self, sample: Sample) -> tuple[Any, ...]:
        """Samples of one size and one length of text share a tick: the transformer takes no mask."""
        return (*super().key(sample), int(sample.cond.text.shape[0]))

    def _encode(self, texts: Sequence[str], clip_skip: int, adapters: Combination) -> Sequence[Conditioning]:
        """Both CLIP states side by side, widened to T5's, then T5's; the two pooled vectors."""
        states, pooled = zip(*(self._clip(part, texts, clip_skip, adapters) for part in CLIPS), strict=True)
        clip, long = torch.cat(states, dim=-1), self._t5(texts)
        clip = functional.pad(clip, (0, long.shape[-1] - clip.shape[-1]))
        joint = torch.cat([clip, long.to(clip.dtype)], dim=1)
        return [Conditioning(*pair) for pair in zip(joint, torch.cat(pooled, dim=-1), strict=True)]

    def _clip(
        self, part: str, texts: Sequence[str], clip_skip: int, adapters: Combination
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The pipeline pads both to the first tokenizer's length.
        length = self._tokenizers["tokenizer"].model_max_length
        ids = token_ids(self._tokenizers[CLIPS[part]], texts, length)
        mixer = self._mixers[part]
        mixer.use([adapters] * len(texts), self._adapters)
        output = self._modules[part](ids.to(self._device.name), output_hidden_states=True)
        mixer.use((), {})
        # SD3 was trained on the state before the last layer.
        return output.hidden_states[-max(2, clip_skip)], output.text_embeds

    def _t5(self, texts: Sequence[str]) -> torch.Tensor:
        if T5 not in self._modules:
            width = self._transformer.config.joint_attention_dim
            return torch.zeros(len(texts), T5_LENGTH, width, dtype=self._dtype, device=self._device.name)
        ids = token_ids(self._tokenizers[T5_TOKENIZER], texts, T5_LENGTH)
        states: torch.Tensor = self._modules[T5](ids.to(self._device.name))[0]
        return states

    def _call(
        self, conditions: Sequence[Conditioning], latents: torch.Tensor, timesteps: torch.Tensor, rows: Sequence[Sample]
    ) -> torch.Tensor:
        del rows
        predicted: torch.Tensor = self._transformer(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=torch.stack([condition.text for condition in conditions]).to(self._dtype),
            pooled_projections=torch.stack([c.pooled for c in conditions if c.pooled is not None]).to(self._dtype),
            return_dict=False,
        )[0]
        return predicted
