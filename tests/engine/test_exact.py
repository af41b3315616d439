"""Same seed, same picture: what the engine draws among neighbours equals the diffusers pipeline called alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from streamapp.engine import Engine, Job, LoRA
from streamapp.engine.names import AUTO, SAMPLERS
from tests.models.make_lora import make_lora

POCKET = Path(__file__).resolve().parents[2] / "streamapp" / "models" / "pocket"
SIDE = 64  # latents of 8x8 are enough to tell right from wrong, and fast
#: The world of the model that ships: at 64 pixels it is lost and amplifies rounding, so that diffusers' own batch of
#: three is 2e-5 off its pictures one by one.
WORLD = {"width": 96, "height": 96}
TOLERANCE = 1e-5
# What diffusers, torchsde and peft warn about in the reference pipeline; nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The reference: diffusers' own pipeline with the shipped weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline_class: Any = diffusers.StableDiffusionPipeline
        loaded = pipeline_class.from_pretrained(POCKET, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def engine() -> Any:
    """An engine with the shipped weights; its cap is given, so that no clock decides who joins."""
    made = Engine(max_batch_rows=32)
    made.load("m", POCKET, "sd15")
    yield made
    made.close()


def reference(pipeline: Any, job: Job, index: int = 0) -> torch.Tensor:
    """The latent the pipeline draws for one image of a job."""
    own = dict(diffusers.DDIMScheduler.load_config(POCKET / "scheduler"))
    seed = job.seed + index
    if job.sampler == AUTO:
        ddim: Any = diffusers.DDIMScheduler
        pipeline.scheduler = ddim.from_config(own)
    else:
        sampler = SAMPLERS[job.sampler]
        options = dict(sampler.options)
        if sampler.scheduler == "DPMSolverSDEScheduler":
            options["noise_sampler_seed"] = seed
        pipeline.scheduler = getattr(diffusers, sampler.scheduler).from_config(own, **options)
    drawn: torch.Tensor = pipeline(
        job.prompt,
        negative_prompt=job.negative_prompt,
        width=job.width,
        height=job.height,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
    ).images[0]
    return drawn


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def job(**given: Any) -> Job:
    """A small job with latent output."""
    values: dict[str, Any] = {
        "model": "m",
        "prompt": "a red apple",
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "output": "latent",
    }
    return Job(**{**values, **given})


def draw(engine: Engine, jobs: list[Job], stagger: int = 0) -> dict[tuple[int, int], torch.Tensor]:
    """Latents by job number and image; with ``stagger`` each job joins that many ticks after the one before."""
    ids: dict[str, int] = {}
    events = []
    for number, each in enumerate(jobs):
        ids[engine.submit(each)] = number
        for _ in range(stagger):
            events += engine.step()
    events += list(engine.run())
    assert [event for event in events if event.kind == "failed"] == []
    return {(ids[e.job_id], e.index): e.value for e in events if e.kind == "image"}


@pytest.mark.parametrize("sampler", [AUTO, *SAMPLERS])
def test_every_sampler_equals_the_pipeline_alone_and_among_neighbours(
    engine: Engine, pipeline: Any, sampler: str
) -> None:
    """Neighbours with other samplers, steps, guidance and prompts join before and after it."""
    wanted = job(**WORLD, sampler=sampler, seed=11, negative_prompt="blue")
    expected = reference(pipeline, wanted)
    neighbours = [
        job(**WORLD, sampler="Euler a", prompt="a green frog", num_inference_steps=9, seed=5),
        job(**WORLD, sampler="DPM++ 2M Karras", prompt="a rocket", guidance_scale=1.0, seed=6),
    ]
    alone = draw(engine, [wanted])[0, 0]
    among = draw(engine, [neighbours[0], wanted, neighbours[1]], stagger=1)[1, 0]
    assert error(alone, expected) <= TOLERANCE
    assert error(among, expected) <= TOLERANCE
    assert max(tick["samples"] for tick in engine.stats()["ticks"]) >= 3
    away = "DDIM" if sampler != "DDIM" else "Euler a"
    other = draw(engine, [job(**WORLD, sampler=away, seed=11, num_inference_steps=7)])
    assert error(other[0, 0], expected) > 1e-3


def test_image_i_of_a_job_uses_seed_plus_i(engine: Engine, pipeline: Any) -> None:
    """Images of one job differ, and each equals the pipeline with its own seed."""
    many = job(**WORLD, num_images=3, seed=40)
    drawn = draw(engine, [many])
    for index in range(3):
        assert error(drawn[0, index], reference(pipeline, many, index)) <= TOLERANCE
    assert error(drawn[0, 0], drawn[0, 1]) > 1e-3


def test_unguided_samples_cost_one_row(engine: Engine, pipeline: Any) -> None:
    """Guidance of 1 takes no second branch and still equals the pipeline."""
    single = job(guidance_scale=1.0, seed=3)
    assert error(draw(engine, [single])[0, 0], reference(pipeline, single)) <= TOLERANCE
    assert {tick["rows"] for tick in engine.stats()["ticks"]} == {1}


def test_mixed_adapters_in_one_forward_equal_solo_pipelines(engine: Engine, pipeline: Any, tmp_path: Path) -> None:
    """Rows with one adapter, with two at their own weights, and with none share ticks; each equals its solo."""
    files = {
        "ink": make_lora(tmp_path / "ink.safetensors", "kohya", seed=1, rank=4, alpha=2.0),
        "wide": make_lora(tmp_path / "wide.safetensors", "diffusers", seed=2, rank=9),
    }
    for name, path in files.items():
        engine.load_lora(name, path, model="m")
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name, local_files_only=True)
    combinations: list[list[LoRA]] = [
        [LoRA("ink", 0.8)],
        [],
        [LoRA("wide", -0.5), LoRA("ink", 1.2)],
        [LoRA("wide", 1.0)],
    ]
    jobs = [job(loras=loras, seed=21, sampler="Euler") for loras in combinations]
    drawn = draw(engine, jobs, stagger=1)
    try:
        plain = None
        for number, loras in enumerate(combinations):
            if loras:
                pipeline.enable_lora()
                pipeline.set_adapters([lora.name for lora in loras], [lora.weight for lora in loras])
            else:
                pipeline.disable_lora()
            expected = reference(pipeline, jobs[number])
            assert error(drawn[number, 0], expected) <= TOLERANCE
            plain = expected if not loras else plain
        assert plain is not None
        for number, loras in enumerate(combinations):
            assert not loras or error(drawn[number, 0], plain) > 1e-3
    finally:
        pipeline.unload_lora_weights()
    assert max(tick["samples"] for tick in engine.stats()["ticks"]) == len(jobs)
    engine.unload_lora("ink")
    assert error(draw(engine, [job(seed=21, sampler="Euler")])[0, 0], plain) <= TOLERANCE


def test_pictures_equal_the_pipelines_to_one_level(engine: Engine, pipeline: Any) -> None:
    """What is decoded and rounded differs by at most 1/255."""
    wanted = job(width=128, height=128, sampler="DDIM", seed=2, output="rgb")
    engine.submit(wanted)
    picture = next(event.value for event in engine.run() if event.kind == "image")
    reference(pipeline, job(sampler="DDIM"))
    expected = pipeline(
        wanted.prompt,
        width=128,
        height=128,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(2),
        output_type="pil",
    ).images[0]
    pairs = zip(picture.pixels, expected.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1
