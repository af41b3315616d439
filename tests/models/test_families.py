"""Facts about families, and what a diffusers folder says of itself."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from streamapp.errors import InvalidRequest
from streamapp.models.families import FAMILIES, family_of_file, traits_of
from streamapp.models.folders import folder_traits
from streamapp.models.sizes import can_draw
from streamapp.scheduling.cost import work
from tests.worker.support import params


def folder(path: Path, pipeline: str, **transformer: object) -> Path:
    path.mkdir()
    (path / "model_index.json").write_bytes(orjson.dumps({"_class_name": pipeline}))
    (path / "transformer").mkdir()
    (path / "transformer" / "config.json").write_bytes(orjson.dumps(transformer))
    return path


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_draws_its_native_size_with_its_own_sampler(name: str) -> None:
    traits = FAMILIES[name].traits
    assert traits.native % traits.size_step == 0
    assert traits.native**2 <= traits.max_pixels
    assert traits.min_side <= traits.native <= traits.max_side
    assert not FAMILIES[name].samplers or traits.sampler in FAMILIES[name].samplers


def test_sizes_that_publishers_name_are_drawn() -> None:
    """Qwen-Image's own list."""
    from streamapp.generation import Size

    for width, height in ((1328, 1328), (1664, 928), (928, 1664), (1472, 1104), (1584, 1056)):
        assert can_draw(Size(width=width, height=height), traits_of("qwen_image"))


def test_a_variant_changes_defaults_and_the_model_has_the_last_word() -> None:
    assert (traits_of("flux").steps, traits_of("flux", {"variant": "schnell"}).steps) == (28, 4)
    assert traits_of("flux", {"variant": "schnell", "steps": 6}).steps == 6
    # What a page says of "turbo" is meant for another family.
    assert traits_of("sd3", {"variant": "turbo", "sampler": "Euler a"}).sampler == "Euler"
    assert traits_of("sdxl", {"variant": "turbo", "sampler": "Euler a"}).sampler == "Euler a"


def test_a_folder_says_which_variant_of_flux_it_is(tmp_path: Path) -> None:
    assert folder_traits(folder(tmp_path / "a", "FluxPipeline", guidance_embeds=True), "flux") == {"variant": "dev"}
    assert folder_traits(folder(tmp_path / "b", "FluxPipeline"), "flux") == {"variant": "schnell"}
    assert folder_traits(folder(tmp_path / "c", "StableDiffusionXLPipeline"), "sdxl") == {}
    # Pipelines that nobody listed have families too.
    assert folder_traits(folder(tmp_path / "d", "StableDiffusionImg2ImgPipeline"), "sd15") == {}


@pytest.mark.parametrize(
    ("pipeline", "family", "says"),
    [
        ("StableDiffusionXLPipeline", "sd15", "is of family sdxl, not sd15"),
        ("FluxPipeline", "sd3", "is of family flux, not sd3"),
        ("FluxFillPipeline", "flux", "is a FluxFillPipeline; drawn is FluxPipeline"),
        ("QwenImageEditPipeline", "qwen_image", "drawn is QwenImagePipeline"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, pipeline: str, family: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        folder_traits(folder(tmp_path / "x", pipeline), family)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    (folder(tmp_path / "x", "FluxPipeline") / "model_index.json").write_text("{")
    with pytest.raises(InvalidRequest, match=r"x/model_index\.json cannot be read"):
        folder_traits(tmp_path / "x", "flux")


def test_a_branch_for_the_negative_prompt_counts_twice() -> None:
    """Guidance as an input costs nothing."""
    single = work(params(family="flux", guidance=3.5))
    assert work(params(family="flux", guidance=3.5, true_cfg=2.0)) == 2 * single
    assert work(params(family="sdxl", guidance=3.5)) == 2 * single


def test_single_files_are_for_families_that_read_them() -> None:
    assert family_of_file("sdxl", "model").name == "sdxl"
    for name, kind in FAMILIES.items():
        assert family_of_file(name, "lora").name == name
        if not kind.files:
            with pytest.raises(InvalidRequest, match=f"models of family {name} are drawn from diffusers folders only"):
                family_of_file(name, "model")
