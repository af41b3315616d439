"""Flux on tiny random weights: every picture equals the diffusers pipeline's, alone and among neighbours."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from streamapp.engine import EngineError, LoRA
from streamapp.engine.names import FLOW_SAMPLERS, SAMPLERS
from tests.engine import tiny_flux
from tests.engine.flow_references import reference, write_lora
from tests.engine.references import TOLERANCE, Load
from tests.engine.test_exact import draw, error, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("flux")
    return tiny_flux.flux(folder), folder


def both(engine: Any, wanted: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Alone, and among neighbours with other samplers, steps, guidance and prompts that joined before and after."""
    neighbours = [
        job(sampler="UniPC", prompt="frog", num_inference_steps=7, seed=5, width=wanted.width, guidance_scale=1.5),
        job(sampler="Euler", prompt="a long rocket", guidance_scale=6.0, seed=6, width=wanted.width),
    ]
    alone = draw(engine, [wanted])[0, 0]
    among = draw(engine, [neighbours[0], wanted, neighbours[1]], stagger=1)[1, 0]
    assert max(tick["samples"] for tick in engine.stats()["ticks"]) == 3
    return alone, among


@pytest.mark.parametrize("sampler", ["Auto", "Euler", "UniPC", "DPM++ 2M"])
def test_every_sampler_equals_the_pipeline(flux: tuple[Any, Path], load: Load, sampler: str) -> None:
    pipeline, folder = flux
    wanted = job(sampler=sampler, seed=11, prompt="apple", guidance_scale=3.5, width=96)
    expected = reference(pipeline, wanted, guidance_scale=3.5)
    for drawn in both(load(folder, "flux"), wanted):
        assert error(drawn, expected) <= TOLERANCE
    other = "Euler" if sampler == "UniPC" else "UniPC"
    assert error(reference(pipeline, replace(wanted, sampler=other), guidance_scale=3.5), expected) > 1e-3


def test_guidance_is_an_input_of_one_branch(flux: tuple[Any, Path], load: Load) -> None:
    pipeline, folder = flux
    engine = load(folder, "flux")
    weak, strong = job(seed=3, guidance_scale=1.0), job(seed=3, guidance_scale=7.0)
    drawn = draw(engine, [weak, strong])
    assert {tick["rows"] / tick["samples"] for tick in engine.stats()["ticks"]} == {1}
    assert error(drawn[0, 0], reference(pipeline, weak, guidance_scale=1.0)) <= TOLERANCE
    assert error(drawn[1, 0], reference(pipeline, strong, guidance_scale=7.0)) <= TOLERANCE
    assert error(drawn[1, 0], drawn[0, 0]) > 1e-3


def test_a_negative_prompt_takes_a_second_branch(flux: tuple[Any, Path], load: Load) -> None:
    """Beside samples without one."""
    pipeline, folder = flux
    engine = load(folder, "flux")
    plain = job(seed=5, guidance_scale=2.0)
    wanted = job(seed=5, guidance_scale=2.0, negative_prompt="blue", true_cfg_scale=3.0)
    drawn = draw(engine, [plain, wanted])
    expected = reference(pipeline, wanted, guidance_scale=2.0, true_cfg_scale=3.0)
    assert error(drawn[1, 0], expected) <= TOLERANCE
    assert error(drawn[0, 0], expected) > 1e-3
    with pytest.raises(EngineError, match="true_cfg_scale above 1") as caught:
        engine.submit(job(negative_prompt="blue"))
    assert (caught.value.code, caught.value.details["field"]) == ("invalid_job", "negative_prompt")


def test_schnell_draws_without_guidance_and_says_so(load: Load, tmp_path: Path) -> None:
    pipeline = tiny_flux.flux(tmp_path, guided=False)
    engine = load(tmp_path, "flux")
    wanted = job(seed=9, guidance_scale=7.0, num_inference_steps=4)
    assert error(draw(engine, [wanted])[0, 0], reference(pipeline, wanted, guidance_scale=0.0)) <= TOLERANCE
    picture: Any = draw(engine, [job(seed=9, output="rgb")])[0, 0]
    assert "schnell" in " ".join(picture.info["notes"])


def test_pictures_are_the_pipelines(flux: tuple[Any, Path], load: Load) -> None:
    """Unpacked, scaled and shifted, decoded; weights are left out of the prompt, and that is said."""
    pipeline, folder = flux
    drawn: Any = draw(load(folder, "flux"), [job(seed=7, prompt="(red:1.3) apple", output="rgb", width=96)])[0, 0]
    sizes = {"width": 96, "height": 64, "num_inference_steps": 6, "guidance_scale": 3.0}
    generator = torch.Generator("cpu").manual_seed(7)
    expected = pipeline("red apple", **sizes, generator=generator, output_type="np").images[0]
    assert np.abs(np.asarray(drawn.to_pil(), dtype=float) - expected * 255).max() <= 0.51
    assert "weights" in " ".join(drawn.info["notes"])


def test_loras_for_transformer_and_clip(flux: tuple[Any, Path], load: Load, tmp_path: Path) -> None:
    """Among rows without."""
    pipeline, folder = flux
    file = tmp_path / "ink.safetensors"
    write_lora(pipeline, ("transformer", "text_encoder"), ("to_q", "add_v_proj", "proj_mlp", "q_proj"), file)
    engine = load(folder, "flux")
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


def test_control_loras_are_refused_by_name(flux: tuple[Any, Path], load: Load, tmp_path: Path) -> None:
    file = tmp_path / "control.safetensors"
    save_file({"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(16)}, file)
    with pytest.raises(EngineError, match="Flux Control LoRA") as caught:
        load(flux[1], "flux").load_lora("control", file, model="m")
    assert caught.value.code == "incompatible_lora"


def test_a_parked_sample_is_drawn_on(flux: tuple[Any, Path], load: Load) -> None:
    wanted = job(seed=8, sampler="UniPC", width=96, negative_prompt="dull", true_cfg_scale=2.0)
    engine, other = load(flux[1], "flux"), load(flux[1], "flux")
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
        ({"height": 72}, "multiples of 16"),
        ({"clip_skip": 2}, "skips no"),
    ],
)
def test_what_cannot_be_drawn_is_refused(flux: tuple[Any, Path], load: Load, given: Any, says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        load(flux[1], "flux").submit(job(**given))
    assert caught.value.code == "invalid_job"


def test_other_families_have_no_second_scale(sd15: tuple[Any, Path], load: Load) -> None:
    with pytest.raises(EngineError, match="true_cfg_scale is for flux"):
        load(sd15[1], "sd15").submit(job(true_cfg_scale=2.0))


def test_every_other_sampler_is_refused_by_name(flux: tuple[Any, Path], load: Load) -> None:
    """Some would run, and draw something else; schedules with them."""
    engine = load(flux[1], "flux")
    for sampler in (*SAMPLERS, "Euler SGM Uniform", "Auto Karras"):
        if sampler not in FLOW_SAMPLERS:
            with pytest.raises(EngineError, match=re.escape(f"{sampler} does not draw flow-matching checkpoints")):
                engine.submit(job(sampler=sampler))
    assert engine.idle
