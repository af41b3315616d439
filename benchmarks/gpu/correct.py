"""What must hold on a device: pictures as the pipelines draw them, and no sample lost where memory is short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.gpu.bench import Bench, Result, error, latents
from streamapp.engine import Engine, Event, Job
from streamapp.engine.memory import ByteLedger

SAMPLERS = {"DDIM": "DDIMScheduler", "Euler": "EulerDiscreteScheduler", "DPM++ 2M": "DPMSolverMultistepScheduler"}
#: Beyond what half precision itself is away from float32: other kernels for other numbers of rows.
SLACK, SLACK_HOST = 1e-2, 1e-5
STEPS = 6


def equality(bench: Bench) -> Result:
    """Samples of a mixed batch are no further from the pipeline in float32 than the pipeline in half precision is.

    On a CPU both are in float32.
    """
    jobs = {
        name: bench.job(seed, STEPS + seed, sampler=name, guidance_scale=3.0 + seed, prompt=f"frog {seed}")
        for seed, name in enumerate(SAMPLERS)
    }
    engine = bench.engine()
    events: list[Event] = []
    for name, job in jobs.items():
        engine.submit(job, name)
        events += engine.step()
    drawn = latents([*events, *engine.run()])
    engine.close()
    exact = _reference(bench, jobs, torch.float32)
    own = _reference(bench, jobs, torch.float16) if bench.device.startswith("cuda") else exact
    ours = {name: error(drawn[name], exact[name]) for name in jobs}
    theirs = {name: error(own[name], exact[name]) for name in jobs}
    slack = SLACK if bench.device.startswith("cuda") else SLACK_HOST
    worst = max(ours[name] - 1.5 * theirs[name] for name in jobs)
    facts = {f"{name}: ours, pipeline": (round(ours[name], 7), round(theirs[name], 7)) for name in jobs}
    what = f"{bench.name}: error against float32 beyond 1.5 times the half-precision pipeline's"
    return Result("equality", what, worst, slack, facts=facts, must=True)


def _reference(bench: Bench, jobs: dict[str, Job], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    kind: Any = diffusers.DiffusionPipeline
    pipeline = kind.from_pretrained(bench.folder, torch_dtype=dtype, local_files_only=True).to(bench.device)
    pipeline.set_progress_bar_config(disable=True)
    config, found = pipeline.scheduler.config, {}
    for name, job in jobs.items():
        pipeline.scheduler = getattr(diffusers, SAMPLERS[name]).from_config(config)
        found[name] = pipeline(
            job.prompt,
            width=job.width,
            height=job.height,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(job.seed),
            output_type="latent",
        ).images[0]
    return found


def short_memory(bench: Bench) -> Result:
    """16 samples where a few fit: all are drawn. On a CPU, which is not short, a pretended memory is."""
    cuda = bench.device.startswith("cuda")
    count, most = 16, 32
    held: list[torch.Tensor] = []
    if cuda:
        engine = bench.engine(max_batch_rows=most)
        _fill(bench, engine, held)
    else:
        ledger = ByteLedger(limit=5 * bench.side**2)
        engine = Engine(max_batch_rows=most, options={"ledger": ledger})
        engine.load("m", "nowhere", "fake")
    engine.submit(bench.job(steps=3, num_images=count, output="rgb"))
    events = list(engine.run())
    sizes = [tick["rows"] for tick in engine.stats()["ticks"]][-count:]
    held.clear()
    engine.close()
    if cuda:
        torch.cuda.empty_cache()
    drawn = sum(event.kind == "image" for event in events)
    problems = sorted({event.value.code for event in events if event.kind == "failed"})
    facts = {"rows of the largest tick": max(sizes), "failed": problems}
    what = f"{bench.name}: samples lost of {count} where memory is short"
    return Result("memory", what, count - drawn, 0, facts=facts, must=True)


def _fill(bench: Bench, engine: Engine, held: list[torch.Tensor]) -> None:
    """Leave as much of the device as two pictures take, decoding included, beside what the engine keeps."""
    engine.submit(bench.job(steps=1, num_images=2, output="rgb"))
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    list(engine.run())
    need = int(1.2 * (torch.cuda.max_memory_allocated(bench.device) - before))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(bench.device)
    held.append(torch.empty(max(0, free - need), dtype=torch.uint8, device=bench.device))


def moved(bench: Bench, other: Path) -> Result:
    """From RAM into the device's memory: bytes a second over those of one pinned copy of as many.

    Args:
        other: a second checkpoint, for which the first one has to go.
    """
    engine = bench.engine(vram_bytes=1, ram_bytes=64 * 1024**3)
    found = [engine.load(name, path, bench.family) for name, path in (("n", other), ("m", bench.folder)) * 3]
    engine.close()
    what, ram = f"{bench.name}: RAM to device / one pinned copy", [each for each in found if each.tier == "ram"]
    if not ram:
        return Result("switch", f"{what}: nothing came from RAM", 0.0, facts={"tiers": [each.tier for each in found]})
    ours = max(each.bytes / each.seconds for each in ram)
    size = min(ram[-1].bytes, 2 * 1024**3)
    source = torch.empty(size, dtype=torch.uint8, pin_memory=bench.device.startswith("cuda"))
    target = torch.empty(size, dtype=torch.uint8, device=bench.device)
    raw = size / bench.seconds(lambda: target.copy_(source), 3)
    facts = {
        "GB/s": round(ours / 1e9, 2),
        "raw GB/s": round(raw / 1e9, 2),
        "MB": round(ram[-1].bytes / 1e6, 1),
        "best switch (s)": round(min(each.seconds for each in ram), 3),
    }
    return Result("switch", what, ours / raw, more=True, facts=facts)
