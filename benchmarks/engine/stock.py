"""The requests of P1a through diffusers' own pipeline, one by one and in batches of equal steps, beside the engine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.engine.legs import interleaved
from benchmarks.engine.ticks import CAP, requests
from streamapp.engine import Engine, Job
from streamapp.engine.names import SAMPLERS


def drawing(pipeline: Any, jobs: Sequence[Job]) -> Callable[[Sequence[Job]], None]:
    """Draws jobs of one sampler and number of steps in one call of diffusers' pipeline."""
    schedulers = {
        name: getattr(diffusers, SAMPLERS[name].scheduler).from_config(
            pipeline.scheduler.config, **dict(SAMPLERS[name].options)
        )
        for name in {job.sampler for job in jobs}
    }

    def drawn(some: Sequence[Job]) -> None:
        pipeline.scheduler = schedulers[some[0].sampler]
        pipeline(
            [job.prompt for job in some],
            width=some[0].width,
            height=some[0].height,
            num_inference_steps=some[0].num_inference_steps,
            guidance_scale=some[0].guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in some],
            output_type="latent",
        )

    return drawn


def images_per_second(pipeline: Any, folder: Path, rounds: int) -> dict[str, float]:
    """Each side's best round. A static batch takes one sampler and one number of steps, so requests wait for others."""
    jobs = requests()
    drawn = drawing(pipeline, jobs)

    def one_by_one() -> None:
        for job in jobs:
            drawn([job])

    def static() -> None:
        alike: dict[tuple[str, int], list[Job]] = defaultdict(list)
        for job in jobs:
            alike[job.sampler, job.num_inference_steps].append(job)
        for some in alike.values():
            for start in range(0, len(some), CAP):
                drawn(some[start : start + CAP])

    engine = Engine(max_batch_rows=CAP)
    engine.load("m", folder)

    def ours() -> None:
        for job in jobs:
            engine.submit(job)
        for _ in engine.run():
            pass

    legs: dict[str, Callable[[], None]] = {
        "engine": ours,
        "diffusers, one by one": one_by_one,
        "diffusers, static": static,
    }
    began = time.perf_counter()
    taken = interleaved(legs, rounds, warm_up=0)
    engine.close()
    print(f"  beside diffusers' pipeline: {time.perf_counter() - began:.0f} s", flush=True)
    return {f"{name} (images/s)": round(len(jobs) / min(spent), 2) for name, spent in taken.items()}
