"""What families with a U-Net share: noise, the batched forward, the solver's step, pictures, adapters.

A family gives the components, its encoding of prompts and, where its U-Net takes more than text, :meth:`_added`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import functional

from streamapp.engine import controls, inputs
from streamapp.engine.adapted import AdaptedCheckpoint
from streamapp.engine.adapters import Combination
from streamapp.engine.clip import ClipEncoder, Conditioning, Wanted
from streamapp.engine.decoding import decoded
from streamapp.engine.embeddings import Embeddings
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device
from streamapp.engine.job import one_scale
from streamapp.engine.mixing import Mixer
from streamapp.engine.noise import Noise
from streamapp.engine.pictures import results
from streamapp.engine.previews import Colours
from streamapp.engine.sample import Sample
from streamapp.engine.solver import schedule_for

FACTOR = 8


class UNetCheckpoint(AdaptedCheckpoint):
    """A loaded checkpoint whose denoiser is a diffusers U-Net over the latents of a VAE.

    Args:
        encoders: text encoders in the order in which their encodings are joined.
        scheduler: the checkpoint's own configuration, variant included.
    """

    lora_loader = "StableDiffusionLoraLoaderMixin"
    #: ControlNets by name, the engine's own.
    controls: Mapping[str, controls.ControlNet] = MappingProxyType({})

    def __init__(
        self, device: Device, encoders: Sequence[ClipEncoder], unet: Any, vae: Any, scheduler: Mapping[str, Any]
    ) -> None:
        latent, taken = vae.config.latent_channels, unet.config.in_channels
        if taken not in {latent, 2 * latent + 1}:
            raise EngineError(
                "load_failed", f"its U-Net takes {taken} channels; {latent} or {2 * latent + 1} are drawn"
            )
        #: Whether it takes a mask and a masked picture beside the latents.
        self._masked = taken != latent
        modules = {"unet": unet, "vae": vae, **{encoder.part: encoder.model for encoder in encoders}}
        mixers = {"unet": Mixer("unet", unet), **{encoder.part: encoder.mixer for encoder in encoders}}
        super().__init__(device, modules, mixers, scheduler)
        self._unet = unet
        self._encoders = tuple(encoders)
        self.embeddings = Embeddings(self.family, {each.part: each.model for each in encoders})
        for encoder in encoders:
            encoder.hear(self.embeddings)

    # What a family says.
    def _encode(self, texts: Sequence[str], clip_skip: int, adapters: Combination) -> Sequence[Conditioning]:
        """Encode prompts with all encoders; here with the only one."""
        (encoder,) = self._encoders
        return encoder.encode(texts, clip_skip, adapters, self._adapters)

    def _negative(self, job: Any) -> str | None:
        """The text of the other branch; None when it is all zeros."""
        return str(job.negative_prompt or "")

    def _added(self, order: Sequence[Sample], conditions: Sequence[Conditioning]) -> dict[str, torch.Tensor]:
        """Further conditions of the rows; here none."""
        del order, conditions
        return {}

    # What the engine calls.
    def validate(self, job: Any) -> None:
        """Sides are multiples of eight, the sampler takes these steps, the encoders these prompts."""
        if job.width % FACTOR or job.height % FACTOR:
            raise EngineError(
                "invalid_job", f"{job.width}x{job.height}: sides must be multiples of {FACTOR} pixels", field="width"
            )
        inputs.check(job, self._masked)
        one_scale(job, self.family)
        schedule_for(job.sampler, job.num_inference_steps, self._scheduler, inputs.first_step(job))
        controls.check(job, self.controls, self._unet.config)
        for encoder in self._encoders:
            encoder.check_skip(job.clip_skip)
            for text in (job.prompt, self._negative(job) or ""):
                encoder.windows(text)

    def rows(self, job: Any) -> int:
        """Two when guided; a U-Net that takes guidance as an embedding needs no second branch."""
        return 2 if job.guidance_scale > 1 and self._unet.config.time_cond_proj_dim is None else 1

    @torch.inference_mode()
    def prepare(self, samples: Sequence[Sample]) -> None:
        """Encode prompts, draw initial noise on the CPU from each sample's own generator."""
        encoded = self._encodings.get({key for s in samples for key in self._wanted(s)}, self._encode)
        for sample in samples:
            job = sample.job
            schedule = schedule_for(job.sampler, job.num_inference_steps, self._scheduler, inputs.first_step(job))
            generator = torch.Generator("cpu").manual_seed(sample.seed)
            shape = (self._vae.config.latent_channels, job.height // FACTOR, job.width // FACTOR)
            sample.schedule, sample.steps = schedule, len(schedule.timesteps)
            sample.latents = inputs.begin(self._vae, sample, self._masked, generator).to(self._device.name)
            sample.memory = torch.zeros(schedule.slots, *shape, device=self._device.name)
            sample.noise = Noise.of(schedule, generator, sample.seed, shape)
            keys = self._wanted(sample)
            sample.cond = encoded[keys[0]]
            if sample.rows == 2:
                sample.uncond = encoded[keys[1]] if len(keys) == 2 else sample.cond.zeros()

    def _wanted(self, sample: Sample) -> list[Wanted]:
        """What must be encoded for a sample: its prompt, and the negative one when it is guided."""
        texts = [sample.job.prompt]
        negative = self._negative(sample.job)
        if sample.rows == 2 and negative is not None:
            texts.append(negative)
        parts = [encoder.part for encoder in self._encoders]
        heard = tuple(pair for pair in sample.adapters if any(self._adapters[pair[0]].parts[part] for part in parts))
        return [Wanted(text, sample.job.clip_skip, heard, self.embeddings.digests(text)) for text in texts]

    @torch.inference_mode()
    def encode_ahead(self, texts: Sequence[str], clip_skip: int) -> None:
        """Encode prompts that jobs will have."""
        wanted = {Wanted(text, clip_skip, (), self.embeddings.digests(text)) for text in texts}
        self._encodings.get(wanted, self._encode)

    def key(self, sample: Sample) -> tuple[Any, ...]:
        """Samples of one latent shape share a tick: prompts are padded to one length."""
        return (sample.job.height // FACTOR, sample.job.width // FACTOR)

    @torch.inference_mode()
    def denoise(self, samples: Sequence[Sample]) -> None:
        """One U-Net forward over all rows (guided samples twice), then one fused solver step."""
        guided = [s for s in samples if s.rows == 2]
        conditions = [*(s.uncond for s in guided), *(s.cond for s in samples)]
        scaled, timesteps = self._batch.begin(samples)
        places = [row for row, s in enumerate(samples) if s.rows == 2]
        twice = [*places, *range(len(samples))]
        order = self._mixer.arrange([samples[place].adapters for place in twice])
        if order is not None:
            twice, conditions = [twice[row] for row in order], [conditions[row] for row in order]
        if guided or order is not None:
            scaled, timesteps = scaled[twice], timesteps[twice]
        predicted = self._forward([samples[place] for place in twice], conditions, scaled, timesteps)
        if order is not None:
            where = torch.tensor(order, device=predicted.device)
            predicted = torch.empty_like(predicted).index_copy_(0, where, predicted)
        base, model = predicted[: len(guided)], predicted[len(guided) :]
        if guided:
            guidance = base.new_tensor([s.job.guidance_scale for s in guided]).view(-1, 1, 1, 1)
            model = model.index_copy(
                0, torch.tensor(places, device=base.device), base + guidance * (model[places] - base)
            )
        self._batch.finish(model)
        inputs.blend(samples)

    def _forward(
        self,
        order: Sequence[Sample],
        conditions: Sequence[Conditioning],
        scaled: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """The U-Net's prediction for every row, float32."""
        dtype = self._dtype
        text, mask = _padded([condition.text for condition in conditions])
        added = {name: value.to(dtype) for name, value in self._added(order, conditions).items()}
        width = self._unet.config.time_cond_proj_dim
        scales = torch.tensor([s.job.guidance_scale - 1.0 for s in order], device=scaled.device)
        self._mixer.use([s.adapters for s in order], self._adapters)
        given = {"sample": scaled.to(dtype), "timestep": timesteps, "encoder_hidden_states": text.to(dtype)}
        steering = controls.residuals(self.controls, order, given, mask, added)
        if self._masked:
            given["sample"] = inputs.widened(scaled, order).to(dtype)
        predicted: torch.Tensor = self._unet(
            **given,
            **steering,
            encoder_attention_mask=mask,
            timestep_cond=None if width is None else guidance_embedding(scales, width).to(dtype),
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        self._mixer.use((), {})
        return predicted.float()

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample], tiled: bool = False) -> list[Any]:
        """Latents to pictures; a sample that is not finite gives an error."""
        vae = self._decoder
        return results(lambda s, part: decoded(vae, s.latents[None], part)[0], samples, self.precision, tiled)

    @torch.inference_mode()
    def previews(self, samples: Sequence[Sample]) -> list[Any]:
        """One pixel per latent place, from the latent at the scale in which the denoiser takes it."""
        if self._colours is None:
            channels = self._vae.config.latent_channels
            self._colours = Colours(partial(decoded, self._vae), channels, self._device.name)
        return [self._colours.picture(s.latents * s.schedule.scale[s.step]) for s in samples]

    def release(self) -> None:
        """Drop the weights."""
        super().release()
        self._unet = None
        self._encoders = ()


def _padded(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Texts of one length, ``(B, tokens, width)``, and the mask of what is real, None when nothing was padded."""
    lengths = [text.shape[0] for text in texts]
    longest = max(lengths)
    if min(lengths) == longest:
        return torch.stack(list(texts)), None
    rows = torch.stack([functional.pad(text, (0, 0, 0, longest - text.shape[0])) for text in texts])
    real = torch.arange(longest, device=rows.device)[None] < torch.tensor(lengths, device=rows.device)[:, None]
    return rows, real


def guidance_embedding(scales: torch.Tensor, width: int) -> torch.Tensor:
    """Guidance as ``(B, width)`` sines and cosines, for U-Nets distilled to take it (Luo et al. 2023, LCM)."""
    half = width // 2
    steps = torch.arange(half, device=scales.device, dtype=torch.float32)
    angles = (scales * 1000)[:, None] * torch.exp(steps * -(math.log(10000.0) / (half - 1)))[None]
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
