"""Image-to-image and inpainting: a sample equals diffusers' pipelines, alone and beside samples of other kinds."""

from __future__ import annotations

import math
import pickle
import random
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageDraw

from streamapp.engine import Engine, EngineError, Job, Picture
from tests.engine import tiny
from tests.engine.references import NEIGHBOURS, TOLERANCE, reference
from tests.engine.test_exact import SIDE, draw, error, job

# What diffusers warns about in the reference pipeline; nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
    pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning"),
]
KINDS = {"sd15": "StableDiffusion", "sdxl": "StableDiffusionXL"}


def picture(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Coarse coloured squares."""
    colours = random.Random(seed).randbytes(8 * 8 * 3)
    return Image.frombytes("RGB", (8, 8), colours).resize((width, height), Image.Resampling.NEAREST)


def mask() -> Image.Image:
    """A white circle with a grey rim."""
    made = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(made).ellipse((8, 12, 50, 60), fill=255, outline=140, width=3)
    return made


class Family:
    """A family's pipelines over one checkpoint, and an engine that has it."""

    def __init__(self, family: str, pipeline: Any, folder: Path) -> None:
        self.family, self.pipeline = family, pipeline
        self.engine = Engine(max_batch_rows=16)
        self.engine.load("m", folder, family)

    def expected(self, wanted: Job) -> torch.Tensor:
        """What diffusers draws."""
        if wanted.image is None:
            return reference(self.pipeline, wanted)
        inpainted = wanted.mask_image is not None
        kind: Any = getattr(diffusers, f"{KINDS[self.family]}{'Inpaint' if inpainted else 'Img2Img'}Pipeline")
        made = kind(**self.pipeline.components, **({"requires_safety_checker": False} if self.family == "sd15" else {}))
        made.set_progress_bar_config(disable=True)
        given: dict[str, Any] = {"image": wanted.image, "strength": wanted.strength}
        if inpainted:
            given["mask_image"] = wanted.mask_image
        return reference(made, wanted, sized=inpainted, **given)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def family(request: pytest.FixtureRequest) -> Any:
    made = Family(request.param, *request.getfixturevalue(request.param))
    yield made
    made.engine.close()


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def inpainting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family whose U-Net takes nine channels."""
    folder = tmp_path_factory.mktemp("inpainting")
    kinds: dict[str, Any] = {"sd15": tiny.sd, "sdxl": tiny.sdxl}
    made = kinds[request.param](folder, in_channels=9)
    family = Family(request.param, made, folder)
    yield family
    family.engine.close()


IMAGE: dict[str, dict[str, Any]] = {
    "Euler a": {"sampler": "Euler a", "strength": 0.6},
    "DDIM": {"sampler": "DDIM", "strength": 0.75},
    "DPM++ 2M": {"sampler": "DPM++ 2M", "strength": 0.7},
    "Heun": {"sampler": "Heun", "strength": 0.5},
    "whole": {"sampler": "Euler", "strength": 1.0},
}
MASK: dict[str, dict[str, Any]] = {
    "Euler a": {"sampler": "Euler a", "strength": 0.8},
    "whole": {"sampler": "DDIM", "strength": 1.0},
    "Heun": {"sampler": "Heun", "strength": 0.6},
    "unguided": {"sampler": "UniPC", "strength": 1.0, "guidance_scale": 1.0},
}


@pytest.mark.parametrize("case", IMAGE)
def test_a_redrawn_picture_equals_the_pipeline_alone_and_among_neighbours(family: Family, case: str) -> None:
    """Neighbours are drawn from text; without the picture, or with another strength, something else comes out."""
    wanted = job(prompt="apple", seed=31, image=picture(1), **IMAGE[case])
    expected = family.expected(wanted)
    assert error(draw(family.engine, [wanted])[0, 0], expected) <= TOLERANCE
    among = draw(family.engine, [NEIGHBOURS[0], wanted, NEIGHBOURS[1]], stagger=1)
    assert error(among[1, 0], expected) <= TOLERANCE
    changed = job(prompt="apple", seed=31, image=picture(2), **IMAGE[case])
    assert error(draw(family.engine, [changed])[0, 0], expected) > 1e-3


@pytest.mark.parametrize("case", MASK)
def test_an_inpainted_picture_equals_the_pipeline_alone_and_among_neighbours(family: Family, case: str) -> None:
    """Neighbours are drawn from text and from a picture; without the mask something else comes out."""
    wanted = job(prompt="apple", seed=31, image=picture(1), mask_image=mask(), **MASK[case])
    expected = family.expected(wanted)
    assert error(draw(family.engine, [wanted])[0, 0], expected) <= TOLERANCE
    other = job(prompt="frog", seed=5, image=picture(3), strength=0.9, num_inference_steps=8)
    among = draw(family.engine, [NEIGHBOURS[0], other, wanted], stagger=1)
    assert error(among[2, 0], expected) <= TOLERANCE
    assert error(among[1, 0], family.expected(other)) <= TOLERANCE
    assert max(tick["samples"] for tick in family.engine.stats()["ticks"]) == 3
    unmasked = job(prompt="apple", seed=31, image=picture(1), **MASK[case])
    assert error(draw(family.engine, [unmasked])[0, 0], expected) > 1e-3


@pytest.mark.parametrize("case", MASK)
def test_an_inpainting_model_equals_the_pipeline_alone_and_among_its_own(inpainting: Family, case: str) -> None:
    """Its U-Net takes the mask and the masked picture beside the latents."""
    wanted = job(prompt="apple", seed=31, image=picture(1), mask_image=mask(), **MASK[case])
    expected = inpainting.expected(wanted)
    assert error(draw(inpainting.engine, [wanted])[0, 0], expected) <= TOLERANCE
    other = job(prompt="frog", seed=5, image=picture(3), mask_image=mask().rotate(90), guidance_scale=1.0)
    assert error(draw(inpainting.engine, [other, wanted], stagger=2)[1, 0], expected) <= TOLERANCE
    changed = job(prompt="apple", seed=31, image=picture(1), mask_image=mask().rotate(90), **MASK[case])
    assert error(draw(inpainting.engine, [changed])[0, 0], expected) > 1e-3


def test_a_picture_is_encoded_once_for_a_job_and_each_image_draws_its_own_noise(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode: Any = diffusers.AutoencoderKL.encode

    def counted(self: Any, x: torch.Tensor, *given: Any, **named: Any) -> Any:
        calls.append(len(x))
        return encode(self, x, *given, **named)

    wanted = job(seed=7, num_images=3, image=picture(1), strength=0.5)
    with monkeypatch.context() as patched:
        patched.setattr(diffusers.AutoencoderKL, "encode", counted)
        drawn = draw(family.engine, [wanted])
    assert calls == [1]
    for index in range(3):
        alone = job(seed=7 + index, image=picture(1), strength=0.5)
        assert error(drawn[0, index], family.expected(alone)) <= TOLERANCE
    assert error(drawn[0, 0], drawn[0, 1]) > 1e-3


def test_a_job_crosses_processes_as_raw_pixels_whatever_form_its_pictures_had(family: Family) -> None:
    wanted = job(seed=2, image=picture(1), mask_image=mask())
    there = pickle.loads(pickle.dumps(wanted.check()))  # noqa: S301 (its own)
    assert isinstance(there.image, Picture)
    assert isinstance(there.mask_image, Picture)
    assert torch.equal(draw(family.engine, [there])[0, 0], draw(family.engine, [wanted])[0, 0])


def test_a_parked_sample_is_painted_on_where_it_is_resumed(family: Family) -> None:
    wanted = job(seed=3, image=picture(1), mask_image=mask(), sampler="Euler a")
    whole = draw(family.engine, [wanted])[0, 0]
    name = family.engine.submit(wanted)
    for _ in range(3):
        family.engine.step()
    family.engine.resume(family.engine.park(name, 0))
    (drawn,) = [event.value for event in family.engine.run() if event.kind == "image"]
    assert torch.equal(drawn, whole)


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "mask alone": ({"mask_image": mask()}, "mask_image", "a mask needs the image"),
    "strength alone": ({"strength": 0.5}, "strength", "give the image or leave it out"),
    "no strength": ({"image": picture(1), "strength": 0.0}, "strength", "above 0 and at most 1"),
    "too much": ({"image": picture(1), "strength": 1.01}, "strength", "above 0 and at most 1"),
    "not a number": ({"image": picture(1), "strength": math.nan}, "strength", "above 0 and at most 1"),
    "no step": ({"image": picture(1), "strength": 0.1}, "strength", "leaves no step of 6"),
    "another size": ({"image": picture(1, 64, 96)}, "image", "is 64x96, the job draws 64x64; resize"),
    "another mask": ({"image": picture(1), "mask_image": picture(1, 32, 64)}, "mask_image", "is 32x64, the job"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_is_refused_before_anything_is_drawn(family: Family, case: str) -> None:
    given, field, message = BAD[case]
    with pytest.raises(EngineError, match=message) as refused:
        family.engine.submit(job(**given))
    assert refused.value.code == "invalid_job"
    assert refused.value.details["field"] == field
    assert family.engine.idle


def test_what_is_no_picture_is_refused(family: Family) -> None:
    with pytest.raises(EngineError, match="the mask cannot be read") as refused:
        family.engine.submit(job(image=picture(1), mask_image=b"no picture"))
    assert refused.value.code == "invalid_image"


@pytest.mark.parametrize("given", [{}, {"image": picture(1)}])
def test_an_inpainting_model_wants_a_picture_and_a_mask(inpainting: Family, given: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="is an inpainting model; give it an image and a mask"):
        inpainting.engine.submit(job(**given))
