"""What diffusers' flow-matching pipelines draw for a job, with the scheduler the engine chooses."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from streamapp.engine import Engine, Job
from tests.engine.test_exact import draw, job

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


class _DPM(diffusers.DPMSolverMultistepScheduler):  # type: ignore[misc, unused-ignore]
    """Takes sigmas and leaves them: pipelines that pass them could not be used with DPM++ otherwise."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        super().set_timesteps(  # type: ignore[misc]
            num_inference_steps or len(sigmas), device, mu
        )

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mix: Any = getattr(self, "add_noise")  # noqa: B009 (the base is unknown to a type checker)
        mixed: torch.Tensor = mix(sample, noise, timestep)
        return mixed


class _UniPC(diffusers.UniPCMultistepScheduler):  # type: ignore[misc, unused-ignore]
    """As text-to-image uses it, in pipelines that start from a picture and ask for a flow scheduler's method."""

    #: Flux's pipeline for text leaves it its own.
    own_sigmas = False

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        steps = num_inference_steps or len(sigmas)
        super().set_timesteps(steps, device, None if self.own_sigmas else sigmas, mu)  # type: ignore[misc]

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mix: Any = getattr(self, "add_noise")  # noqa: B009 (the base is unknown to a type checker)
        mixed: torch.Tensor = mix(sample, noise, timestep)
        return mixed


#: Sampler → scheduler.
SCHEDULERS: dict[str, Any] = {"UniPC": _UniPC, "DPM++ 2M": _DPM}


def reference(pipeline: Any, wanted: Job, **given: Any) -> torch.Tensor:
    """The latent of a job; the pipeline is called for it alone."""
    before = pipeline.scheduler
    if wanted.sampler in SCHEDULERS:
        options = {**FLOW, "flow_shift": before.config.shift}
        pipeline.scheduler = SCHEDULERS[wanted.sampler].from_config(before.config, **options)
        pipeline.scheduler.own_sigmas = type(pipeline).__name__.startswith("Flux")
    try:
        drawn: torch.Tensor = pipeline(
            wanted.prompt,
            **{"negative_prompt": wanted.negative_prompt, **given},
            width=wanted.width,
            height=wanted.height,
            num_inference_steps=wanted.num_inference_steps,
            generator=torch.Generator("cpu").manual_seed(wanted.seed),
            output_type="latent",
        ).images[0]
    finally:
        pipeline.scheduler = before
    return drawn


def redrawn(pipeline: Any, wanted: Job, **given: Any) -> torch.Tensor:
    """The latent of a job with a picture."""
    given = {**given, "image": wanted.image, "strength": wanted.strength}
    if wanted.mask_image is not None:
        given["mask_image"] = wanted.mask_image
    return reference(pipeline, wanted, **given)


def both(engine: Engine, wanted: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Alone, and among neighbours with other samplers, steps, guidance and prompts that joined before and after."""
    neighbours = [
        job(sampler="UniPC", prompt="frog", num_inference_steps=7, seed=5, width=wanted.width),
        job(sampler="Euler", prompt="a long rocket", guidance_scale=1.0, seed=6, width=wanted.width),
    ]
    alone = draw(engine, [wanted])[0, 0]
    among = draw(engine, [neighbours[0], wanted, neighbours[1]], stagger=1)[1, 0]
    assert max(tick["samples"] for tick in engine.stats()["ticks"]) == 3
    return alone, among


def write_lora(pipeline: Any, parts: tuple[str, ...], endings: tuple[str, ...], file: Any) -> None:
    """A LoRA of rank 4 for the layers with these endings, in diffusers' layout."""
    torch.manual_seed(5)
    state = {}
    for part in parts:
        for name, module in getattr(pipeline, part).named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(endings):
                state[f"{part}.{name}.lora_A.weight"] = torch.randn(4, module.in_features) * 0.3
                state[f"{part}.{name}.lora_B.weight"] = torch.randn(module.out_features, 4) * 0.3
    save_file(state, file)
