"""What families with a multimodal diffusion transformer and real guidance share (Esser et al. 2024).

A family reads its components and says how prompts are encoded, how the transformer is called and how latents become
pixels; noise, the batched forward, the solver's step and adapters are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from streamapp.engine import inputs
from streamapp.engine.adapted import AdaptedCheckpoint
from streamapp.engine.adapters import Combination
from streamapp.engine.clip import Conditioning, Wanted
from streamapp.engine.decoding import pictures
from streamapp.engine.embeddings import Embeddings
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device
from streamapp.engine.flow_schedule import flow_schedule
from streamapp.engine.job import one_scale
from streamapp.engine.mixing import Mixer
from streamapp.engine.noise import Noise
from streamapp.engine.pictures import results
from streamapp.engine.previews import Colours
from streamapp.engine.prompts import plain
from streamapp.engine.sample import Sample
from streamapp.engine.solver import Schedule

#: Pixels of a side per image token: the VAE reduces by eight, the transformer takes patches of two by two.
TOKEN = 16
STRIPPED = "weights in the prompt were left out: this family's text encoders take none"


def half(device: Device) -> torch.dtype:
    """The type of weights; these overflow in float16, bfloat16 takes its place."""
    return torch.bfloat16 if device.dtype == "float16" else getattr(torch, device.dtype)


def token_ids(tokenizer: Any, texts: Sequence[str], length: int) -> torch.Tensor:
    """Tokens ``(B, length)``: padded, and cut at the end."""
    given = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    ids: torch.Tensor = tokenizer(list(texts), **given).input_ids
    return ids


class MMDiTCheckpoint(AdaptedCheckpoint):
    """A loaded checkpoint.

    Args:
        texts: text encoders by name; absent ones are left out.
        heard: those of them that adapters may change.
        scheduler: the checkpoint's own configuration.
    """

    #: Whether layers of its text encoders can be skipped.
    skips = False

    def __init__(
        self,
        device: Device,
        texts: Mapping[str, Any],
        heard: Sequence[str],
        transformer: Any,
        vae: Any,
        scheduler: Mapping[str, Any],
    ) -> None:
        modules = {**texts, "transformer": transformer, "vae": vae}
        mixers = {part: Mixer(part, modules[part]) for part in ("transformer", *heard)}
        super().__init__(device, modules, mixers, scheduler)
        self._transformer = transformer
        self.embeddings = Embeddings(self.family, {})

    # What a family says.
    #: The shift at the largest pictures where the scheduler's configuration has none.
    most_shift = 1.15

    def _even(self, job: Any) -> bool:
        """Whether the pipeline gives the sampler sigmas in even steps."""
        del job
        return False

    def _encode(self, texts: Sequence[str], clip_skip: int, adapters: Combination) -> Sequence[Conditioning]:
        """Encode plain prompts."""
        raise NotImplementedError

    def _negative(self, job: Any) -> str:
        """The text of the other branch."""
        return str(job.negative_prompt or "")

    def _call(
        self, conditions: Sequence[Conditioning], latents: torch.Tensor, timesteps: torch.Tensor, rows: Sequence[Sample]
    ) -> torch.Tensor:
        """The transformer's prediction for rows of one size, of these samples."""
        raise NotImplementedError

    def _scale(self, job: Any) -> float:
        """Of both branches."""
        return float(job.guidance_scale)

    def _guided(self, base: torch.Tensor, model: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Both branches as one prediction (Ho and Salimans 2022)."""
        return base + scale * (model - base)

    def _laid(self, planes: torch.Tensor) -> torch.Tensor:
        """Planes ``(C, height / 8, width / 8)`` as the transformer takes latents."""
        return planes

    def _planes(self, sample: Sample) -> torch.Tensor:
        """A sample's latents as ``(C, height / 8, width / 8)``."""
        latents: torch.Tensor = sample.latents
        return latents

    def _pixels(self, vae: Any, planes: torch.Tensor, tiled: bool = False) -> torch.Tensor:
        """Latents ``(B, C, h, w)`` as pictures ``(B, 3, H, W)``, −1 to 1."""
        config = vae.config
        return pictures(vae, planes / config.scaling_factor + config.shift_factor, tiled)

    def _check_controls(self, job: Any) -> None:
        if job.controls:
            raise EngineError("invalid_job", f"{self.family} checkpoints take no ControlNets yet", field="controls")

    def _draw_first(self, sample: Sample, generator: torch.Generator) -> None:
        """Take from a sample's generator what its pipeline draws before the noise; here nothing."""

    def _schedule(self, job: Any) -> Schedule:
        places, first = (job.height // TOKEN) * (job.width // TOKEN), inputs.first_step(job, flow=True)
        given = job.sampler, job.num_inference_steps, self._scheduler, places
        return flow_schedule(*given, even=self._even(job), most=self.most_shift, first=first)

    # What the engine calls.
    def validate(self, job: Any) -> None:
        """Sides are multiples of sixteen, the sampler is one for flow matching and takes these steps."""
        if job.width % TOKEN or job.height % TOKEN:
            raise EngineError(
                "invalid_job", f"{job.width}x{job.height}: sides must be multiples of {TOKEN} pixels", field="width"
            )
        if job.clip_skip != 1 and not self.skips:
            raise EngineError("invalid_job", f"{self.family} skips no layers; leave clip_skip out", field="clip_skip")
        self._check_controls(job)
        if self.family != "flux":
            one_scale(job, self.family)
        inputs.check(job, masked=False)
        self._schedule(job)

    def rows(self, job: Any) -> int:
        """Two when guided."""
        return 2 if job.guidance_scale > 1 else 1

    @torch.inference_mode()
    def prepare(self, samples: Sequence[Sample]) -> None:
        """Encode prompts, draw initial noise on the CPU from each sample's own generator."""
        encoded = self._encodings.get({key for s in samples for key in self._wanted(s)}, self._encode)
        for sample in samples:
            schedule = self._schedule(sample.job)
            generator = torch.Generator("cpu").manual_seed(sample.seed)
            sample.schedule, sample.steps = schedule, len(schedule.timesteps)
            self._draw_first(sample, generator)
            latents = inputs.begin(self._vae, sample, False, generator, self._laid)
            sample.latents = latents.to(self._device.name)
            sample.memory = torch.zeros(schedule.slots, *latents.shape, device=self._device.name)
            sample.noise = Noise.of(schedule, generator, sample.seed, tuple(latents.shape))
            keys = self._wanted(sample)
            sample.cond = encoded[keys[0]]
            if sample.rows == 2:
                sample.uncond = encoded[keys[1]]
            self._note(sample)

    def _note(self, sample: Sample) -> None:
        """Say what of the prompt was not drawn."""
        texts = [sample.job.prompt, self._negative(sample.job)][: sample.rows]
        if any(plain(text)[1] for text in texts):
            sample.notes = (*sample.notes, STRIPPED)

    def _wanted(self, sample: Sample) -> list[Wanted]:
        """What must be encoded: the prompt, and the negative one (of which no layer is skipped) when guided."""
        parts = [part for part in self._mixers if part != "transformer"]
        heard = tuple(pair for pair in sample.adapters if any(self._adapters[pair[0]].parts[part] for part in parts))
        texts = [Wanted(plain(sample.job.prompt)[0], sample.job.clip_skip, heard)]
        if sample.rows == 2:
            texts.append(Wanted(plain(self._negative(sample.job))[0], 1, heard))
        return texts

    @torch.inference_mode()
    def encode_ahead(self, texts: Sequence[str], clip_skip: int) -> None:
        """Encode prompts that jobs will have."""
        self._encodings.get({Wanted(plain(text)[0], clip_skip, ()) for text in texts}, self._encode)

    def key(self, sample: Sample) -> tuple[Any, ...]:
        """Samples of one size share a tick."""
        return (sample.job.height // TOKEN, sample.job.width // TOKEN)

    @torch.inference_mode()
    def denoise(self, samples: Sequence[Sample]) -> None:
        """One forward over all rows (guided samples twice), then one fused solver step."""
        guided = [s for s in samples if s.rows == 2]
        conditions = [*(s.uncond for s in guided), *(s.cond for s in samples)]
        latents, timesteps = self._batch.begin(samples)
        places = [row for row, s in enumerate(samples) if s.rows == 2]
        twice = [*places, *range(len(samples))]
        order = self._mixer.arrange([samples[place].adapters for place in twice])
        if order is not None:
            twice, conditions = [twice[row] for row in order], [conditions[row] for row in order]
        if guided or order is not None:
            latents, timesteps = latents[twice], timesteps[twice]
        self._mixer.use([samples[place].adapters for place in twice], self._adapters)
        rows = [samples[place] for place in twice]
        predicted = self._call(conditions, latents.to(self._dtype), timesteps, rows).float()
        self._mixer.use((), {})
        if order is not None:
            where = torch.tensor(order, device=predicted.device)
            predicted = torch.empty_like(predicted).index_copy_(0, where, predicted)
        base, model = predicted[: len(guided)], predicted[len(guided) :]
        if guided:
            scale = base.new_tensor([self._scale(s.job) for s in guided]).view(-1, *[1] * (base.dim() - 1))
            where = torch.tensor(places, device=base.device)
            model = model.index_copy(0, where, self._guided(base, model[places], scale))
        self._batch.finish(model)
        inputs.blend(samples)

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample], tiled: bool = False) -> list[Any]:
        """Latents to pictures; a sample that is not finite gives an error."""
        made = partial(self._pixels, self._decoder)
        return results(lambda s, part: made(self._planes(s)[None], part)[0].float(), samples, self.precision, tiled)

    @torch.inference_mode()
    def previews(self, samples: Sequence[Sample]) -> list[Any]:
        """One pixel per latent place."""
        if self._colours is None:
            self._colours = Colours(partial(self._pixels, self._vae), inputs.channels(self._vae), self._device.name)
        return [self._colours.picture(self._planes(sample)) for sample in samples]

    def release(self) -> None:
        """Drop the weights."""
        super().release()
        self._transformer = None
