"""What diffusers' own pipelines draw for a job, and the engine alone and among neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from streamapp.engine import Engine, Job
from streamapp.engine.names import AUTO, SAMPLERS
from tests.engine.test_exact import draw, job

TOLERANCE = 1e-5
NEIGHBOURS = [
    job(sampler="Euler a", prompt="frog", num_inference_steps=7, seed=5),
    job(sampler="DDIM", prompt="rocket", guidance_scale=1.0, seed=6),
]


Load = Callable[..., Engine]


def reference(pipeline: Any, wanted: Job, own: Any = None, **given: Any) -> torch.Tensor:
    """The latent the pipeline draws for a job, with the engine's choice of scheduler and further arguments.

    Pipelines that take their size from a picture get ``sized=False``.
    """
    before = pipeline.scheduler
    if own is not None:
        pipeline.scheduler = own
    elif wanted.sampler != AUTO:
        sampler = SAMPLERS[wanted.sampler]
        options = dict(sampler.options)
        if sampler.scheduler == "DPMSolverSDEScheduler":
            options["noise_sampler_seed"] = wanted.seed
        pipeline.scheduler = getattr(diffusers, sampler.scheduler).from_config(before.config, **options)
    sized = given.pop("sized", True)
    values: dict[str, Any] = {"prompt": wanted.prompt, "negative_prompt": wanted.negative_prompt, **given}
    if sized:
        values.update(width=wanted.width, height=wanted.height)
    try:
        drawn: torch.Tensor = pipeline(
            **values,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(wanted.seed),
            output_type="latent",
        ).images[0]
    finally:
        pipeline.scheduler = before
    return drawn


def both(engine: Engine, wanted: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Alone, and among neighbours that joined before and after."""
    alone = draw(engine, [wanted])[0, 0]
    return alone, draw(engine, [NEIGHBOURS[0], wanted, NEIGHBOURS[1]], stagger=1)[1, 0]
