"""Stable Diffusion 1.x: CLIP text encoder, UNet, four-channel VAE (Rombach et al. 2022), in diffusers' layout.

Components come from diffusers and transformers; the loop is the engine's. A sample's picture equals that of
``StableDiffusionPipeline`` called for it alone with ``torch.Generator("cpu").manual_seed(seed + i)``.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch

from streamapp.engine.adapters import Adapter, Combination, Mixer, read_adapter
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Picture
from streamapp.engine.families import Device
from streamapp.engine.sample import Sample
from streamapp.engine.single_file import Components, read_single_file
from streamapp.engine.solver import RANDN, Schedule, schedule_for, update

FACTOR = 8
CHANNELS = 4
CACHE_BYTES = 64 * 1024**2


def load(path: Path, device: Device, options: Mapping[str, Any]) -> StableDiffusion1:
    """Load a diffusers folder or a single safetensors file in the published layout, without any network.

    Raises:
        EngineError: ``load_failed`` with what is missing or unreadable.
    """
    del options
    torch.set_num_threads(device.threads)
    dtype = getattr(torch, device.dtype)
    parts = read_single_file(path, dtype) if path.is_file() else _read_folder(path, dtype)
    for module in (parts.text, parts.unet, parts.vae):
        module.to(device.name).eval().requires_grad_(False)
    return StableDiffusion1(device, parts.tokenizer, parts.text, parts.unet, parts.vae, parts.scheduler)


def _read_folder(path: Path, dtype: torch.dtype) -> Components:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    if not (path / "model_index.json").is_file():
        raise EngineError("load_failed", f"{path.name} is not a diffusers folder: it has no model_index.json")
    weights: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    # Typed as callable on instances only; they are plain class methods.
    unet_class: Any = UNet2DConditionModel
    vae_class: Any = AutoencoderKL
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
            text: Any = CLIPTextModel.from_pretrained(path / "text_encoder", dtype=dtype, **weights)
            unet = unet_class.from_pretrained(path / "unet", torch_dtype=dtype, **weights)
            # The VAE stays in float32: it is small, and half precision overflows in some of them.
            vae = vae_class.from_pretrained(path / "vae", torch_dtype=torch.float32, **weights)
        scheduler = orjson.loads((path / "scheduler" / "scheduler_config.json").read_bytes())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError("load_failed", f"{path.name}: {error}") from error
    return Components(tokenizer, text, unet, vae, scheduler)


class StableDiffusion1:
    """A loaded checkpoint."""

    family = "sd15"

    def __init__(
        self, device: Device, tokenizer: Any, text: Any, unet: Any, vae: Any, scheduler: dict[str, Any]
    ) -> None:
        self._device = device
        self._tokenizer = tokenizer
        self._text = text
        self._unet = unet
        self._vae = vae
        self._scheduler = scheduler
        self._adapters: dict[str, Adapter] = {}
        self._mixers = {"unet": Mixer("unet", unet), "text_encoder": Mixer("text_encoder", text)}
        self._encodings: OrderedDict[tuple[str, Combination], torch.Tensor] = OrderedDict()
        self._encoded_bytes = 0

    def validate(self, job: Any) -> None:
        """Sides are multiples of eight; the sampler takes these steps."""
        if job.width % FACTOR or job.height % FACTOR:
            raise EngineError(
                "invalid_job", f"{job.width}x{job.height}: sides must be multiples of {FACTOR} pixels", field="width"
            )
        schedule_for(job.sampler, job.num_inference_steps, self._scheduler)

    @torch.inference_mode()
    def prepare(self, samples: Sequence[Sample]) -> None:
        """Encode prompts, draw initial noise on the CPU from each sample's own generator."""
        self._encode({(text, s.adapters) for s in samples for text in _texts(s)})
        for sample in samples:
            job = sample.job
            schedule = schedule_for(job.sampler, job.num_inference_steps, self._scheduler)
            generator = torch.Generator("cpu").manual_seed(sample.seed)
            shape = (CHANNELS, job.height // FACTOR, job.width // FACTOR)
            noise = torch.randn((1, *shape), generator=generator)[0]
            sample.schedule, sample.steps = schedule, len(schedule.timesteps)
            sample.latents = (noise * schedule.initial).to(self._device.name)
            sample.memory = torch.zeros(schedule.slots, *shape, device=self._device.name)
            sample.noise = _noise_source(schedule, generator, sample)
            sample.cond = self._encodings[job.prompt, sample.adapters]
            sample.uncond = self._encodings[_texts(sample)[-1], sample.adapters] if sample.rows == 2 else None
        self._trim()

    def key(self, sample: Sample) -> tuple[Any, ...]:
        """Samples of one latent shape share a tick: prompts are padded to one length."""
        return (sample.job.height // FACTOR, sample.job.width // FACTOR)

    @torch.inference_mode()
    def denoise(self, samples: Sequence[Sample]) -> None:
        """One UNet forward over all rows (guided samples twice), then one fused solver step."""
        guided = [s for s in samples if s.rows == 2]
        order = [*guided, *samples]
        scaled = torch.stack([s.latents * s.schedule.scale[s.step] for s in order])
        timesteps = torch.tensor([s.schedule.timesteps[s.step] for s in order], device=scaled.device)
        text = torch.stack([*(s.uncond for s in guided), *(s.cond for s in samples)])
        mixer = self._mixers["unet"]
        mixer.use([s.adapters for s in order], self._adapters)
        dtype = self._unet.dtype
        predicted = self._unet(scaled.to(dtype), timesteps, encoder_hidden_states=text.to(dtype), return_dict=False)[0]
        predicted = predicted.float()
        mixer.use((), {})
        negative = {id(s): predicted[row] for row, s in enumerate(guided)}
        stacked = []
        for row, sample in enumerate(samples, start=len(guided)):
            model = predicted[row]
            if id(sample) in negative:
                base = negative[id(sample)]
                model = base + sample.job.guidance_scale * (model - base)
            noise = sample.noise(sample.step)
            noise = torch.zeros_like(model) if noise is None else noise.to(model.device)
            stacked.append([sample.latents, model, noise, *sample.memory])
        after = update([s.schedule for s in samples], [s.step for s in samples], stacked)
        for row, sample in enumerate(samples):
            sample.latents = after[row, 0]
            sample.memory = after[row, 1 : 1 + sample.schedule.slots]

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample]) -> list[Any]:
        """Latents to pictures, one VAE pass for those of one shape; a sample that is not finite gives an error."""
        results: list[Any] = []
        for sample in samples:
            if not torch.isfinite(sample.latents).all():
                message = "the picture came out as not-a-number; try another seed, less guidance or more steps"
                results.append(EngineError("not_finite", message))
            elif sample.job.output == "latent":
                results.append(sample.latents.clone())
            else:
                results.append(self._picture(sample))
        return results

    def _picture(self, sample: Sample) -> Any:
        scaled = (sample.latents / self._vae.config.scaling_factor)[None]
        image = self._vae.decode(scaled, return_dict=False)[0][0]
        pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
        height, width = pixels.shape[:2]
        info = {
            "seed": sample.seed,
            "sampler": sample.schedule.sampler,
            "steps": sample.job.num_inference_steps,
            "precision": str(self._unet.dtype).removeprefix("torch."),
            "notes": sample.notes,
        }
        picture = Picture(width, height, pixels.tobytes(), info)
        return picture.to_pil() if sample.job.output == "pil" else picture

    # Text.
    def _encode(self, wanted: set[tuple[str, Combination]]) -> None:
        """Encode what is not kept yet: one encoder pass per combination of adapters."""
        missing = wanted - self._encodings.keys()
        for key in wanted - missing:
            self._encodings.move_to_end(key)
        for adapters in {adapters for _, adapters in missing}:
            texts = sorted(text for text, used in missing if used == adapters)
            tokens = self._tokenizer(
                texts,
                padding="max_length",
                max_length=self._tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            mixer = self._mixers["text_encoder"]
            mixer.use([adapters] * len(texts), self._adapters)
            hidden = self._text(tokens.input_ids.to(self._device.name))[0]
            mixer.use((), {})
            for text, encoding in zip(texts, hidden, strict=True):
                self._encodings[text, adapters] = encoding
                self._encoded_bytes += encoding.numel() * encoding.element_size()

    def _trim(self) -> None:
        """Keep the encodings within their budget, the least recently used go first."""
        while self._encoded_bytes > CACHE_BYTES:
            _, encoding = self._encodings.popitem(last=False)
            self._encoded_bytes -= encoding.numel() * encoding.element_size()

    # Adapters.
    def load_lora(self, name: str, path: Path) -> int:
        """Keep an adapter's factors on the device."""
        targets = {"unet": self._unet, "text_encoder": self._text}
        self.unload_lora(name)
        adapter = read_adapter(name, path, targets, self._unet.config, self._device.name)
        for mixer in self._mixers.values():
            mixer.attach(adapter)
        self._adapters[name] = adapter
        return adapter.bytes

    def unload_lora(self, name: str) -> None:
        """Forget an adapter and what was encoded with it."""
        if self._adapters.pop(name, None) is None:
            return
        for mixer in self._mixers.values():
            mixer.forget(name)
        for key in [key for key in self._encodings if any(used == name for used, _ in key[1])]:
            encoding = self._encodings.pop(key)
            self._encoded_bytes -= encoding.numel() * encoding.element_size()

    @property
    def adapters(self) -> Mapping[str, int]:
        """Resident adapters and their bytes."""
        return {name: adapter.bytes for name, adapter in self._adapters.items()}

    @property
    def bytes(self) -> int:
        """Weights of all components."""
        modules = (self._text, self._unet, self._vae)
        return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())

    def release(self) -> None:
        """Drop the weights."""
        self._text = self._unet = self._vae = None
        self._encodings.clear()
        self._adapters.clear()
        self._mixers.clear()


def _texts(sample: Sample) -> tuple[str, ...]:
    """What must be encoded: the prompt, and the negative prompt of a guided sample (absent means empty)."""
    job = sample.job
    return (job.prompt, job.negative_prompt or "") if sample.rows == 2 else (job.prompt,)


def _noise_source(schedule: Schedule, generator: torch.Generator, sample: Sample) -> Any:
    """Noise of each call, in the pipeline's own order of draws."""
    shape = (1, *sample.latents.shape)
    tree: Any = None
    if any(isinstance(noise, tuple) for noise in schedule.noise):
        from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

        tree = BrownianTreeNoiseSampler(torch.zeros(shape), *schedule.sigmas, sample.seed)

    def draw(step: int) -> torch.Tensor | None:
        kind = schedule.noise[step]
        if kind is None:
            return None
        if kind == RANDN:
            return torch.randn(shape, generator=generator)[0]
        start, end = (torch.tensor(sigma) for sigma in kind)
        noise: torch.Tensor = tree(start, end)[0]
        return noise

    return draw
