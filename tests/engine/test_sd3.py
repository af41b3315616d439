"""Stable Diffusion 3 on tiny random weights: every picture equals the diffusers pipeline's, alone and in company."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamapp.engine import EngineError, LoRA
from streamapp.engine.names import FLOW_SAMPLERS, SAMPLERS
from tests.engine import tiny_sd3
from tests.engine.flow_references import both, reference, write_lora
from tests.engine.references import TOLERANCE, Load
from tests.engine.test_exact import draw, error, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sd3")
    return tiny_sd3.sd3(folder), folder


@pytest.mark.parametrize("sampler", ["Auto", "Euler", "UniPC", "DPM++ 2M"])
def test_every_sampler_equals_the_pipeline(sd3: tuple[Any, Path], load: Load, sampler: str) -> None:
    pipeline, folder = sd3
    wanted = job(sampler=sampler, seed=11, prompt="apple", negative_prompt="blue", width=96)
    expected = reference(pipeline, wanted, guidance_scale=3.0)
    for drawn in both(load(folder, "sd3"), wanted):
        assert error(drawn, expected) <= TOLERANCE
    other = "Euler" if sampler == "UniPC" else "UniPC"
    assert error(reference(pipeline, replace(wanted, sampler=other), guidance_scale=3.0), expected) > 1e-3


def test_guidance_and_both_prompts_count(sd3: tuple[Any, Path], load: Load) -> None:
    """An absent negative prompt is an empty one."""
    pipeline, folder = sd3
    absent, empty, other = job(seed=3), job(seed=3, negative_prompt=""), job(seed=3, negative_prompt="grey")
    alone = job(seed=3, guidance_scale=1.0, prompt="dog")
    engine = load(folder, "sd3")
    unguided = draw(engine, [alone])[0, 0]
    assert {tick["rows"] for tick in engine.stats()["ticks"]} == {1}
    drawn = draw(engine, [absent, empty, other, alone])
    assert error(drawn[0, 0], drawn[1, 0]) <= TOLERANCE
    assert error(drawn[0, 0], reference(pipeline, absent, guidance_scale=3.0)) <= TOLERANCE
    assert error(drawn[3, 0], reference(pipeline, alone, guidance_scale=1.0)) <= TOLERANCE
    assert error(drawn[2, 0], drawn[0, 0]) > 1e-3
    assert error(drawn[3, 0], drawn[0, 0]) > 1e-3
    assert error(drawn[3, 0], unguided) <= TOLERANCE


def test_the_shift_may_depend_on_the_size(load: Load, tmp_path: Path) -> None:
    shifts = {"use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 32}
    pipeline = tiny_sd3.sd3(tmp_path, scheduler=shifts)
    wanted = job(seed=2, width=96)
    expected = reference(pipeline, wanted, guidance_scale=3.0)
    for drawn in both(load(tmp_path, "sd3"), wanted):
        assert error(drawn, expected) <= TOLERANCE
    assert error(reference(pipeline, wanted, guidance_scale=3.0, mu=0.0), expected) > 1e-3


def test_t5_may_be_absent(sd3: tuple[Any, Path], load: Load, tmp_path: Path) -> None:
    pipeline, wanted = tiny_sd3.sd3(tmp_path, with_t5=False), job(seed=4)
    expected = reference(pipeline, wanted, guidance_scale=3.0)
    assert error(draw(load(tmp_path, "sd3"), [wanted])[0, 0], expected) <= TOLERANCE
    # With T5, the pipeline listens to it.
    assert (
        error(reference(sd3[0], wanted, guidance_scale=3.0, prompt_3="dog"), draw(load(sd3[1], "sd3"), [wanted])[0, 0])
        > 1e-3
    )


def test_clip_skip_skips_layers_of_the_prompt_as_the_pipeline_does(sd3: tuple[Any, Path], load: Load) -> None:
    pipeline, folder = sd3
    drawn = draw(load(folder, "sd3"), [job(seed=5, clip_skip=skip, negative_prompt="dull") for skip in (1, 2, 3)])
    expected = reference(pipeline, job(seed=5, negative_prompt="dull"), guidance_scale=3.0, clip_skip=1)
    assert error(drawn[0, 0], drawn[1, 0]) <= TOLERANCE
    assert error(drawn[2, 0], expected) <= TOLERANCE
    assert error(drawn[0, 0], expected) > 1e-3


def test_weights_in_a_prompt_are_left_out_and_said_so(sd3: tuple[Any, Path], load: Load) -> None:
    pipeline, folder = sd3
    wanted = job(seed=6, prompt="(red:1.4) [apple]")
    expected = reference(pipeline, job(seed=6, prompt="red apple"), guidance_scale=3.0)
    engine = load(folder, "sd3")
    assert error(draw(engine, [wanted])[0, 0], expected) <= TOLERANCE
    assert error(reference(pipeline, wanted, guidance_scale=3.0), expected) > 1e-3
    pictures = draw(engine, [job(prompt="(red:1.4)", output="rgb"), job(prompt="red", output="rgb")])
    assert ["weights" in " ".join(pictures[number, 0].info["notes"]) for number in (0, 1)] == [True, False]  # type: ignore[attr-defined]


def test_pictures_are_the_pipelines(sd3: tuple[Any, Path], load: Load) -> None:
    """Scaled and shifted, then decoded."""
    pipeline, folder = sd3
    wanted = job(seed=7, output="rgb")
    drawn: Any = draw(load(folder, "sd3"), [wanted])[0, 0]
    generator = torch.Generator("cpu").manual_seed(7)
    sizes = {"width": 64, "height": 64, "num_inference_steps": 6, "guidance_scale": 3.0}
    expected = pipeline(wanted.prompt, **sizes, generator=generator, output_type="np").images[0]
    assert np.abs(np.asarray(drawn.to_pil(), dtype=float) - expected * 255).max() <= 0.51


def test_a_lora_for_the_transformer_and_an_encoder(sd3: tuple[Any, Path], load: Load, tmp_path: Path) -> None:
    """Among rows without."""
    pipeline, folder = sd3
    file = tmp_path / "ink.safetensors"
    write_lora(pipeline, ("transformer", "text_encoder"), ("to_q", "add_v_proj", "q_proj", "norm1.linear"), file)
    engine = load(folder, "sd3")
    engine.load_lora("ink", file, model="m")
    plain, wanted = job(seed=21), job(seed=21, loras=[LoRA("ink", 0.7)])
    drawn = draw(engine, [plain, wanted], stagger=1)
    assert error(drawn[0, 0], reference(pipeline, plain, guidance_scale=3.0)) <= TOLERANCE
    with warnings.catch_warnings(action="ignore"):
        pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="ink", local_files_only=True)
    pipeline.set_adapters(["ink"], [0.7])
    try:
        expected = reference(pipeline, wanted, guidance_scale=3.0)
    finally:
        pipeline.unload_lora_weights()
    assert error(drawn[1, 0], expected) <= TOLERANCE
    assert error(drawn[0, 0], expected) > 1e-3


def test_a_parked_sample_is_drawn_on_bit_for_bit(sd3: tuple[Any, Path], load: Load) -> None:
    wanted = job(seed=8, sampler="UniPC")
    engine, other = load(sd3[1], "sd3"), load(sd3[1], "sd3")
    expected = draw(engine, [wanted])[0, 0]
    parked = engine.submit(wanted)
    for _ in range(3):
        engine.step()
    other.resume(engine.park(parked, 0))
    (image,) = [event.value for event in other.run() if event.kind == "image"]
    assert torch.equal(image, expected)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sampler": "Euler a"}, "does not draw flow-matching"),
        ({"width": 72}, "multiples of 16"),
        ({"height": 656}, "sides of at most 640 pixels"),
        ({"clip_skip": 9}, "take 1 to 4"),
    ],
)
def test_what_cannot_be_drawn_is_refused(sd3: tuple[Any, Path], load: Load, given: Any, says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        load(sd3[1], "sd3").submit(job(**given))
    assert caught.value.code == "invalid_job"


def test_every_other_sampler_is_refused_by_name(sd3: tuple[Any, Path], load: Load) -> None:
    """Some would run, and draw something else; schedules with them."""
    engine = load(sd3[1], "sd3")
    for sampler in (*SAMPLERS, "Euler SGM Uniform", "Auto Karras"):
        if sampler not in FLOW_SAMPLERS:
            with pytest.raises(EngineError, match=re.escape(f"{sampler} does not draw flow-matching checkpoints")):
                engine.submit(job(sampler=sampler))
    assert engine.idle
