"""Families on tiny random checkpoints: every picture equals the diffusers pipeline's, alone and among neighbours."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from streamapp.engine import EngineError, LoRA
from streamapp.engine.names import AUTO, SAMPLERS
from tests.engine import tiny
from tests.engine.references import TOLERANCE, Load, both, reference
from tests.engine.test_exact import draw, error, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


@pytest.mark.parametrize("sampler", [AUTO, *SAMPLERS])
def test_sdxl_equals_its_pipeline_with_every_sampler(sdxl: tuple[Any, Path], load: Load, sampler: str) -> None:
    pipeline, folder = sdxl
    wanted = job(sampler=sampler, seed=11, prompt="apple", negative_prompt="blue", width=96)
    expected = reference(pipeline, wanted)
    for drawn in both(load(folder, "sdxl"), wanted):
        assert error(drawn, expected) <= TOLERANCE
    other = "Euler a" if sampler == "DDIM" else "DDIM"
    assert error(reference(pipeline, replace(wanted, sampler=other)), expected) > 1e-3


def test_sdxl_tells_an_absent_negative_prompt_from_an_empty_one(
    sdxl: tuple[Any, Path], load: Load, tmp_path: Path
) -> None:
    pipeline, folder = sdxl
    engine = load(folder, "sdxl")
    absent, empty = job(seed=3), job(seed=3, negative_prompt="")
    drawn = draw(engine, [absent, empty])
    assert error(drawn[0, 0], reference(pipeline, absent)) <= TOLERANCE
    assert error(drawn[1, 0], reference(pipeline, empty)) <= TOLERANCE
    assert error(drawn[0, 0], drawn[1, 0]) > 1e-3
    other = tiny.sdxl(tmp_path, force_zeros=False)
    encoded = draw(load(tmp_path, "sdxl"), [absent])[0, 0]
    assert error(encoded, reference(other, absent)) <= TOLERANCE


def test_sdxl_depends_on_its_size_and_its_pooled_text(sdxl: tuple[Any, Path], load: Load) -> None:
    """Taking either condition away moves the picture."""
    pipeline, folder = sdxl
    wanted = job(seed=4, prompt="apple")
    expected = reference(pipeline, wanted)
    assert error(reference(pipeline, wanted, original_size=(640, 640)), expected) > 1e-3
    encoded = pipeline.encode_prompt("apple", None, negative_prompt=None)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    given = dict(zip(names, encoded, strict=True))
    given["pooled_prompt_embeds"] = torch.zeros_like(encoded[2])
    moved = reference(pipeline, wanted, prompt=None, negative_prompt=None, **given)
    assert error(moved, expected) > 1e-3
    assert error(draw(load(folder, "sdxl"), [wanted])[0, 0], expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("variant", "scheduler", "options", "bound"),
    [
        ("turbo", "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, TOLERANCE),
        ("lightning", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, TOLERANCE),
        ("lcm", "LCMScheduler", {}, TOLERANCE),
        ("v_prediction", "EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, TOLERANCE),
        # At sigma 4096 diffusers itself is 1.3e-5 away from float64.
        (
            "zero_snr",
            "EulerDiscreteScheduler",
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            1e-4,
        ),
    ],
)
def test_variants_choose_the_checkpoints_own_scheduler(
    sdxl: tuple[Any, Path], load: Load, variant: str, scheduler: str, options: dict[str, Any], bound: float
) -> None:
    pipeline, folder = sdxl
    wanted = job(seed=8, num_inference_steps=4)
    own = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **options)
    expected = reference(pipeline, wanted, own)
    for drawn in both(load(folder, "sdxl", variant), wanted):
        assert error(drawn, expected) <= bound
    assert error(reference(pipeline, wanted), expected) > 1e-3


def test_unknown_variants_and_folders_of_another_family_are_refused(
    sdxl: tuple[Any, Path], sd15: tuple[Any, Path], load: Load, tmp_path: Path
) -> None:
    for folder, family, variant, says in (
        (sdxl[1], "sdxl", "fast", "variant 'fast' is not known"),
        (sd15[1], "sdxl", None, "has no text_encoder_2"),
    ):
        with pytest.raises(EngineError, match=says) as caught:
            load(folder, family, variant)
        assert caught.value.code == "load_failed"
    tiny.sd(tmp_path, in_channels=7)
    with pytest.raises(EngineError, match="takes 7 channels; 4 or 9 are drawn"):
        load(tmp_path, "sd15")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion_2_equals_its_pipeline(load: Load, tmp_path: Path, prediction: str) -> None:
    """Heads by level, linear projections, padding by "!", v-prediction from the scheduler's configuration."""
    pipeline = tiny.sd(
        tmp_path,
        scheduler={"prediction_type": prediction},
        pad="!",
        attention_head_dim=(2, 4),
        use_linear_projection=True,
    )
    wanted = job(seed=2, negative_prompt="grey", sampler="DPM++ 2M")
    expected = reference(pipeline, wanted)
    for drawn in both(load(tmp_path, "sd15"), wanted):
        assert error(drawn, expected) <= TOLERANCE


def test_a_unet_that_takes_guidance_as_an_embedding_needs_one_row(load: Load, tmp_path: Path) -> None:
    pipeline = tiny.sd(tmp_path, time_cond_proj_dim=8)
    engine = load(tmp_path, "sd15", "lcm")
    drawn = {}
    for scale in (8.5, 1.0):
        wanted = job(seed=2, guidance_scale=scale, sampler="LCM", num_inference_steps=4)
        drawn[scale] = draw(engine, [wanted])[0, 0]
        assert error(drawn[scale], reference(pipeline, wanted)) <= TOLERANCE
    assert {tick["rows"] for tick in engine.stats()["ticks"]} == {1}
    assert error(drawn[1.0], drawn[8.5]) > 1e-3


def test_loras_for_both_text_encoders_and_the_unet_of_sdxl(sdxl: tuple[Any, Path], load: Load, tmp_path: Path) -> None:
    """One file with factors for three components, in diffusers' layout, among rows without."""
    pipeline, folder = sdxl
    file = _sdxl_lora(pipeline, tmp_path)
    engine = load(folder, "sdxl")
    engine.load_lora("ink", file, model="m")
    wanted = job(seed=21, loras=[LoRA("ink", 0.7)], negative_prompt="dull")
    plain = job(seed=21, negative_prompt="dull")
    drawn = draw(engine, [plain, wanted], stagger=1)
    assert error(drawn[0, 0], reference(pipeline, plain)) <= TOLERANCE
    with warnings.catch_warnings(action="ignore"):
        pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="ink", local_files_only=True)
    pipeline.set_adapters(["ink"], [0.7])
    try:
        expected = reference(pipeline, wanted)
    finally:
        pipeline.unload_lora_weights()
    assert error(drawn[1, 0], expected) <= TOLERANCE
    assert error(drawn[0, 0], expected) > 1e-3


def _sdxl_lora(pipeline: Any, folder: Path) -> Path:
    torch.manual_seed(5)
    state = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, module in getattr(pipeline, part).named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_v", "q_proj", "v_proj")):
                state[f"{part}.{name}.lora_A.weight"] = torch.randn(4, module.in_features) * 0.3
                state[f"{part}.{name}.lora_B.weight"] = torch.randn(module.out_features, 4) * 0.3
    save_file(state, folder / "ink.safetensors")
    return folder / "ink.safetensors"
