"""Flux.1 dev and schnell: CLIP's pooled vector, T5, a transformer over packed latents (Black Forest Labs 2024).

A sample's latent equals that of ``FluxPipeline`` called for it alone with
``torch.Generator("cpu").manual_seed(seed + i)``. dev takes guidance as an input of its one branch; a negative prompt
counts only with ``true_cfg_scale`` above 1, which makes a second branch. schnell knows no guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from streamapp.engine import flux_controls, inputs
from streamapp.engine.adapters import Combination
from streamapp.engine.clip import Conditioning
from streamapp.engine.controls import check
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device
from streamapp.engine.flow_file import read_flow_file
from streamapp.engine.mmdit import TOKEN, MMDiTCheckpoint, half, token_ids
from streamapp.engine.names import AUTO, sampler_name
from streamapp.engine.packed import pack, unpack
from streamapp.engine.pipeline_folder import Part, read_parts
from streamapp.engine.sample import Sample

#: Tokens of T5: the pipeline's default for both variants.
T5_LENGTH = 512
#: Variants that a row may name; the tensors tell them apart anyway.
VARIANTS = frozenset({"dev", "schnell"})
UNGUIDED = "guidance was left out: this checkpoint (schnell) draws without"


def read(path: Path, device: Device, options: Mapping[str, Any]) -> Any:
    """Read a diffusers folder or a single file, without any network.

    Raises:
        EngineError: ``load_failed`` with what is missing or unreadable.
    """
    variant = options.get("variant")
    if variant is not None and variant not in VARIANTS:
        raise EngineError("load_failed", f"flux has no variant {variant!r}; known: {', '.join(sorted(VARIANTS))}")
    torch.set_num_threads(device.threads)
    dtype = half(device)
    wanted = {
        "tokenizer": Part("transformers", "CLIPTokenizer"),
        "text_encoder": Part("transformers", "CLIPTextModel", dtype),
        "tokenizer_2": Part("transformers", "T5TokenizerFast"),
        "text_encoder_2": Part("transformers", "T5EncoderModel", dtype),
        "transformer": Part("diffusers", "FluxTransformer2DModel", dtype),
        "vae": Part("diffusers", "AutoencoderKL", torch.float32),
    }
    if path.is_file():
        parts, scheduler = read_flow_file(path, "flux", dtype, options.get("components"))
    else:
        parts, scheduler = read_parts(path, wanted)
    config = parts["transformer"].config
    if config.out_channels not in (None, config.in_channels):
        raise EngineError("load_failed", "its transformer takes a picture beside the latents: Fill and Control"
                          " checkpoints are not drawn yet")  # fmt: skip
    return parts, scheduler


def build(parts: Any, device: Device, options: Mapping[str, Any]) -> Flux:
    """A checkpoint of components that are on the device."""
    checkpoint = Flux(device, *parts)
    checkpoint.controls = options.get("controls", {})
    return checkpoint


class Flux(MMDiTCheckpoint):
    """A loaded checkpoint; a sample's latents are packed as the pipeline's, ``(tokens, 4 C)``."""

    family = "flux"
    lora_loader = "FluxLoraLoaderMixin"
    #: ControlNets by name, the engine's own.
    controls: Mapping[str, flux_controls.FluxControlNet] = MappingProxyType({})

    def __init__(self, device: Device, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        texts = {name: parts[name] for name in ("text_encoder", "text_encoder_2")}
        super().__init__(device, texts, ("text_encoder",), parts["transformer"], parts["vae"], scheduler)
        self._clip_tokenizer, self._t5_tokenizer = parts["tokenizer"], parts["tokenizer_2"]
        self._distilled = bool(parts["transformer"].config.guidance_embeds)

    def validate(self, job: Any) -> None:
        """Also: a negative prompt needs its branch."""
        super().validate(job)
        if job.negative_prompt is not None and not job.true_cfg_scale > 1:
            raise EngineError(
                "invalid_job",
                "Flux takes a negative prompt only with true_cfg_scale above 1, at twice the time; leave it out",
                field="negative_prompt",
            )

    def _check_controls(self, job: Any) -> None:
        check(job, self.controls, self._transformer.config)
        flux_controls.check(job, self.controls)

    def _draw_first(self, sample: Sample, generator: torch.Generator) -> None:
        flux_controls.draw_first(sample, self.controls, inputs.channels(self._vae), generator)

    def rows(self, job: Any) -> int:
        """Two only with a negative prompt: guidance itself is an input."""
        return 2 if job.true_cfg_scale > 1 and job.negative_prompt is not None else 1

    def _scale(self, job: Any) -> float:
        return float(job.true_cfg_scale)

    def _note(self, sample: Sample) -> None:
        super()._note(sample)
        if not self._distilled and sample.job.guidance_scale > 0:
            sample.notes = (*sample.notes, UNGUIDED)

    def _even(self, job: Any) -> bool:
        # The pipeline gives its even sigmas to schedulers made for flow matching only.
        return sampler_name(job.sampler) in {AUTO, "Euler"}

    def _encode(self, texts: Sequence[str], clip_skip: int, adapters: Combination) -> Sequence[Conditioning]:
        """T5's states, padded to one length, and CLIP's pooled vector."""
        del clip_skip
        ids = token_ids(self._t5_tokenizer, texts, T5_LENGTH).to(self._device.name)
        states = self._modules["text_encoder_2"](ids)[0]
        mixer = self._mixers["text_encoder"]
        mixer.use([adapters] * len(texts), self._adapters)
        words = token_ids(self._clip_tokenizer, texts, self._clip_tokenizer.model_max_length).to(self._device.name)
        pooled = self._modules["text_encoder"](words).pooler_output
        mixer.use((), {})
        return [Conditioning(*pair) for pair in zip(states, pooled, strict=True)]

    def _laid(self, planes: torch.Tensor) -> torch.Tensor:
        return pack(planes)

    def _call(
        self, conditions: Sequence[Conditioning], latents: torch.Tensor, timesteps: torch.Tensor, rows: Sequence[Sample]
    ) -> torch.Tensor:
        text = torch.stack([condition.text for condition in conditions]).to(self._dtype)
        job = rows[0].job
        places = torch.zeros(job.height // TOKEN, job.width // TOKEN, 3)
        places[..., 1] += torch.arange(places.shape[0])[:, None]
        places[..., 2] += torch.arange(places.shape[1])
        guidance = torch.tensor([row.job.guidance_scale for row in rows], device=latents.device, dtype=torch.float32)
        given: dict[str, Any] = {
            "hidden_states": latents,
            "timestep": timesteps.to(self._dtype) / 1000,
            "guidance": guidance,
            "pooled_projections": torch.stack([c.pooled for c in conditions if c.pooled is not None]).to(self._dtype),
            "encoder_hidden_states": text,
            "txt_ids": torch.zeros(text.shape[1], 3, device=latents.device, dtype=self._dtype),
            "img_ids": places.reshape(-1, 3).to(latents.device, self._dtype),
        }
        prompts = [condition is row.cond for condition, row in zip(conditions, rows, strict=True)]
        blocks = (len(self._transformer.transformer_blocks), len(self._transformer.single_transformer_blocks))
        steering = flux_controls.residuals(self.controls, rows, prompts, given, self._vae, blocks)
        if not self._distilled:
            given["guidance"] = None
        predicted: torch.Tensor = self._transformer(**given, **steering, return_dict=False)[0]
        return predicted

    def _planes(self, sample: Sample) -> torch.Tensor:
        return unpack(sample.latents, sample.job.height // TOKEN, sample.job.width // TOKEN)
