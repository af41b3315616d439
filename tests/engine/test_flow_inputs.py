"""Image-to-image and inpainting with flow matching: a sample equals diffusers' pipelines, alone and in company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from streamapp.engine import Engine, EngineError, Job
from tests.engine import tiny_flux, tiny_qwen, tiny_sd3
from tests.engine.flow_references import redrawn
from tests.engine.references import TOLERANCE
from tests.engine.test_exact import draw, error, job
from tests.engine.test_image_inputs import mask, picture

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
#: Family → pipelines' name, its checkpoint, what its pipelines call guidance.
FAMILIES: dict[str, tuple[str, Any, str]] = {
    # Its inpainting pipeline takes sixteen channels only.
    "sd3": ("StableDiffusion3", lambda folder: tiny_sd3.sd3(folder, channels=16), "guidance_scale"),
    "flux": ("Flux", tiny_flux.flux, "guidance_scale"),
    "qwen_image": ("QwenImage", tiny_qwen.qwen_image, "true_cfg_scale"),
}


class Family:
    """A family's pipelines over one checkpoint, and an engine that has it."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.name, made, self.guidance = FAMILIES[family]
        self.pipeline = made(folder)
        self.engine = Engine(max_batch_rows=16)
        self.engine.load("m", folder, family)

    def expected(self, wanted: Job) -> torch.Tensor:
        """What diffusers draws."""
        kind: Any = getattr(
            diffusers, f"{self.name}{'Inpaint' if wanted.mask_image is not None else 'Img2Img'}Pipeline"
        )
        made = kind(**self.pipeline.components)
        made.set_progress_bar_config(disable=True)
        given: dict[str, Any] = {self.guidance: wanted.guidance_scale}
        if self.family == "qwen_image":
            given["negative_prompt"] = " "
        return redrawn(made, wanted, **given)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Family(request.param, tmp_path_factory.mktemp(request.param))
    yield made
    made.engine.close()


def neighbours() -> list[Job]:
    """From text, and from another picture."""
    return [
        job(prompt="frog", num_inference_steps=7, seed=5, sampler="UniPC"),
        job(prompt="rocket", num_inference_steps=9, seed=6, guidance_scale=1.0, image=picture(3), strength=0.9),
    ]


def shared(family: Family, wanted: Job) -> torch.Tensor:
    """A job's latent, drawn beside neighbours that joined before and after."""
    first, last = neighbours()
    drawn = draw(family.engine, [first, wanted, last], stagger=1)
    assert max(tick["samples"] for tick in family.engine.stats()["ticks"]) == 3
    return drawn[1, 0]


#: Strength 0.55 of six steps leaves three and a third: four steps.
IMAGE: dict[str, dict[str, Any]] = {
    "Euler": {"strength": 0.55},
    "UniPC": {"sampler": "UniPC", "strength": 0.7},
    "DPM++ 2M": {"sampler": "DPM++ 2M", "strength": 0.7},
    "whole": {"strength": 1.0},
}
MASK: dict[str, dict[str, Any]] = {
    "Euler": {"strength": 0.8},
    "UniPC": {"sampler": "UniPC", "strength": 0.7},
    "DPM++ 2M": {"sampler": "DPM++ 2M", "strength": 0.7},
    "whole": {"strength": 1.0},
}


@pytest.mark.parametrize("case", IMAGE)
def test_a_redrawn_picture_equals_the_pipeline(family: Family, case: str) -> None:
    """With another picture something else comes out."""
    wanted = job(prompt="apple", seed=31, image=picture(1), **IMAGE[case])
    expected = family.expected(wanted)
    assert error(draw(family.engine, [wanted])[0, 0], expected) <= TOLERANCE
    assert error(shared(family, wanted), expected) <= TOLERANCE
    changed = job(prompt="apple", seed=31, image=picture(2), **IMAGE[case])
    other = error(draw(family.engine, [changed])[0, 0], expected)
    # All of it is drawn anew: only noise is started from.
    assert other <= TOLERANCE if case == "whole" else other > 1e-3


@pytest.mark.parametrize("case", MASK)
def test_an_inpainted_picture_equals_the_pipeline(family: Family, case: str) -> None:
    """Without the mask, or with another picture around it, something else comes out."""
    wanted = job(prompt="apple", seed=31, image=picture(1), mask_image=mask(), **MASK[case])
    expected = family.expected(wanted)
    assert error(draw(family.engine, [wanted])[0, 0], expected) <= TOLERANCE
    assert error(shared(family, wanted), expected) <= TOLERANCE
    for given in ({"image": picture(1)}, {"image": picture(2), "mask_image": mask()}):
        changed = job(prompt="apple", seed=31, **given, **MASK[case])
        assert error(draw(family.engine, [changed])[0, 0], expected) > 1e-3


def test_each_image_of_a_job_draws_its_own_noise_over_one_encoding(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    kind = type(family.pipeline.vae)
    encode: Any = kind.encode

    def counted(self: Any, x: torch.Tensor, *given: Any, **named: Any) -> Any:
        calls.append(len(x))
        return encode(self, x, *given, **named)

    wanted = job(seed=7, num_images=2, image=picture(1), strength=0.5)
    with monkeypatch.context() as patched:
        patched.setattr(kind, "encode", counted)
        drawn = draw(family.engine, [wanted])
    assert calls == [1]
    for index in range(2):
        assert error(drawn[0, index], family.expected(job(seed=7 + index, image=picture(1), strength=0.5))) <= TOLERANCE
    assert error(drawn[0, 0], drawn[0, 1]) > 1e-3


def test_a_parked_sample_is_painted_on_where_it_is_resumed(family: Family) -> None:
    wanted = job(seed=3, image=picture(1), mask_image=mask(), strength=0.9)
    whole = draw(family.engine, [wanted])[0, 0]
    name = family.engine.submit(wanted)
    for _ in range(3):
        family.engine.step()
    family.engine.resume(family.engine.park(name, 0))
    (drawn,) = [event.value for event in family.engine.run() if event.kind == "image"]
    assert torch.equal(drawn, whole)


def test_a_picture_of_another_size_is_refused(family: Family) -> None:
    with pytest.raises(EngineError, match="is 64x96, the job draws 64x64; resize") as refused:
        family.engine.submit(job(image=picture(1, 64, 96)))
    assert (refused.value.code, refused.value.details["field"]) == ("invalid_job", "image")
