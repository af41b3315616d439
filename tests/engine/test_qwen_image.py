"""Qwen-Image on tiny random weights: every picture equals the diffusers pipeline's, alone and among neighbours."""

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
from tests.engine import tiny_qwen
from tests.engine.flow_references import both, reference, write_lora
from tests.engine.references import TOLERANCE, Load
from tests.engine.test_exact import draw, error, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("qwen")
    return tiny_qwen.qwen_image(folder), folder


@pytest.mark.parametrize("sampler", ["Auto", "Euler", "UniPC", "DPM++ 2M"])
def test_every_sampler_equals_the_pipeline(qwen: tuple[Any, Path], load: Load, sampler: str) -> None:
    """Neighbours' prompts have other lengths."""
    pipeline, folder = qwen
    wanted = job(sampler=sampler, seed=11, prompt="apple", negative_prompt="blue and grey", width=96)
    expected = reference(pipeline, wanted, true_cfg_scale=3.0)
    for drawn in both(load(folder, "qwen_image"), wanted):
        assert error(drawn, expected) <= TOLERANCE
    other = "Euler" if sampler == "UniPC" else "UniPC"
    assert error(reference(pipeline, replace(wanted, sampler=other), true_cfg_scale=3.0), expected) > 1e-3


def test_a_missing_negative_prompt_is_a_blank(qwen: tuple[Any, Path], load: Load) -> None:
    pipeline, folder = qwen
    absent, other, alone = job(seed=3), job(seed=3, negative_prompt="grey"), job(seed=3, guidance_scale=1.0)
    drawn = draw(load(folder, "qwen_image"), [absent, other, alone])
    blank = {"negative_prompt": " "}
    assert error(drawn[0, 0], reference(pipeline, absent, true_cfg_scale=3.0, **blank)) <= TOLERANCE
    assert error(drawn[2, 0], reference(pipeline, alone, true_cfg_scale=1.0)) <= TOLERANCE
    assert error(drawn[1, 0], drawn[0, 0]) > 1e-3
    assert error(drawn[2, 0], drawn[0, 0]) > 1e-3


def test_guidance_keeps_the_length_of_a_prediction(
    qwen: tuple[Any, Path], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking the rescaling away moves the picture."""
    from streamapp.engine.families.qwen_image import QwenImage
    from streamapp.engine.mmdit import MMDiTCheckpoint

    engine, wanted = load(qwen[1], "qwen_image"), job(seed=3, guidance_scale=6.0)
    expected = reference(qwen[0], wanted, true_cfg_scale=6.0, negative_prompt=" ")
    assert error(draw(engine, [wanted])[0, 0], expected) <= TOLERANCE
    monkeypatch.setattr(QwenImage, "_guided", MMDiTCheckpoint._guided)
    assert error(draw(engine, [wanted])[0, 0], expected) > 1e-3


def test_the_shift_may_be_fixed(load: Load, tmp_path: Path) -> None:
    fixed = tiny_qwen.qwen_image(tmp_path, scheduler={"use_dynamic_shifting": False, "shift": 2.0})
    wanted = job(seed=2)
    expected = reference(fixed, wanted, true_cfg_scale=3.0, negative_prompt=" ")
    assert error(draw(load(tmp_path, "qwen_image"), [wanted])[0, 0], expected) <= TOLERANCE


def test_pictures_are_the_pipelines(qwen: tuple[Any, Path], load: Load) -> None:
    """Unpacked, scaled by channel, decoded; weights are left out of the prompt, and that is said."""
    pipeline, folder = qwen
    drawn: Any = draw(load(folder, "qwen_image"), [job(seed=7, prompt="(red:1.3) apple", output="rgb", width=96)])[0, 0]
    generator = torch.Generator("cpu").manual_seed(7)
    sizes = {"width": 96, "height": 64, "num_inference_steps": 6, "true_cfg_scale": 3.0, "negative_prompt": " "}
    expected = pipeline("red apple", **sizes, generator=generator, output_type="np").images[0]
    assert np.abs(np.asarray(drawn.to_pil(), dtype=float) - expected * 255).max() <= 0.51
    assert "weights" in " ".join(drawn.info["notes"])


def test_a_lora_for_the_transformer(qwen: tuple[Any, Path], load: Load, tmp_path: Path) -> None:
    """Among rows without."""
    pipeline, folder = qwen
    file = tmp_path / "ink.safetensors"
    write_lora(pipeline, ("transformer",), ("to_q", "add_v_proj", "img_mod.1"), file)
    engine = load(folder, "qwen_image")
    engine.load_lora("ink", file, model="m")
    plain, wanted = job(seed=21, negative_prompt="dull"), job(seed=21, negative_prompt="dull", loras=[LoRA("ink", 0.7)])
    drawn = draw(engine, [plain, wanted], stagger=1)
    assert error(drawn[0, 0], reference(pipeline, plain, true_cfg_scale=3.0)) <= TOLERANCE
    with warnings.catch_warnings(action="ignore"):
        pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="ink", local_files_only=True)
    pipeline.set_adapters(["ink"], [0.7])
    try:
        expected = reference(pipeline, wanted, true_cfg_scale=3.0)
    finally:
        pipeline.unload_lora_weights()
    assert error(drawn[1, 0], expected) <= TOLERANCE
    assert error(drawn[0, 0], expected) > 1e-3


def test_a_parked_sample_is_drawn_on_and_previewed(qwen: tuple[Any, Path], load: Load) -> None:
    wanted = job(seed=8, sampler="UniPC", width=96)
    engine, other = load(qwen[1], "qwen_image"), load(qwen[1], "qwen_image")
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
        ({"sampler": "DDIM"}, "does not draw flow-matching"),
        ({"height": 72}, "multiples of 16"),
        ({"num_inference_steps": 1}, "take more"),
    ],
)
def test_what_cannot_be_drawn_is_refused(qwen: tuple[Any, Path], load: Load, given: Any, says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        load(qwen[1], "qwen_image").submit(job(**given))
    assert caught.value.code == "invalid_job"


def test_every_other_sampler_is_refused_by_name(qwen: tuple[Any, Path], load: Load) -> None:
    """Some would run, and draw something else; schedules with them."""
    engine = load(qwen[1], "qwen_image")
    for sampler in (*SAMPLERS, "Euler SGM Uniform", "Auto Karras"):
        if sampler not in FLOW_SAMPLERS:
            with pytest.raises(EngineError, match=re.escape(f"{sampler} does not draw flow-matching checkpoints")):
                engine.submit(job(sampler=sampler))
    assert engine.idle
