"""ControlNet: what steers a sample equals diffusers' pipelines, alone and beside samples with others and with none."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from streamapp.engine import Control, Engine, EngineError, Job, LoRA, Picture
from tests.engine import tiny
from tests.engine.references import TOLERANCE, reference
from tests.engine.test_exact import POCKET, SIDE, WORLD, draw, error, job
from tests.models.make_lora import make_lora

# What diffusers warns about in the reference pipeline; nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
]
NETS = ("canny", "depth")
#: What does not depend on the family is shown for one.
ONE_FAMILY = pytest.mark.parametrize("steered", ["sd15"], indirect=True)
PIPELINES = {
    "sd15": "StableDiffusionControlNetPipeline",
    "sdxl": "StableDiffusionXLControlNetPipeline",
}


def picture(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Coarse coloured squares."""
    colours = random.Random(seed).randbytes(8 * 8 * 3)
    return Image.frombytes("RGB", (8, 8), colours).resize((width, height), Image.Resampling.NEAREST)


class Steered:
    """A family's pipeline, two ControlNets for it, and an engine that has all of them."""

    def __init__(self, family: str, pipeline: Any, folder: Path, nets: Path) -> None:
        self.family, self.pipeline, self.folder = family, pipeline, folder
        self.paths = {name: nets / name for name in NETS}
        self.nets = {name: tiny.controlnet(nets / name, pipeline.unet, seed) for seed, name in enumerate(NETS)}

    def engine(self) -> Engine:
        engine = Engine(max_batch_rows=16)
        engine.load("m", self.folder, self.family)
        for name, path in self.paths.items():
            engine.load(name, path, family="controlnet")
        return engine

    def expected(self, wanted: Job) -> torch.Tensor:
        """What diffusers draws, with the ControlNets that the job names."""
        steps = list(wanted.controls)
        if not steps:
            return reference(self.pipeline, wanted)
        nets = [self.nets[control.model] for control in steps]
        several = len(nets) > 1
        kind: Any = getattr(diffusers, PIPELINES[self.family])
        made = kind(**self.pipeline.components, controlnet=nets if several else nets[0])
        made.set_progress_bar_config(disable=True)
        given = {
            "image": [control.image for control in steps],
            "controlnet_conditioning_scale": [control.scale for control in steps],
            "control_guidance_start": [control.start for control in steps],
            "control_guidance_end": [control.end for control in steps],
        }
        return reference(made, wanted, **(given if several else {name: value[0] for name, value in given.items()}))


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def steered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Steered:
    pipeline, folder = request.getfixturevalue(request.param)
    return Steered(request.param, pipeline, folder, tmp_path_factory.mktemp("nets"))


@pytest.fixture
def engine(steered: Steered) -> Any:
    made = steered.engine()
    yield made
    made.close()


CASES: dict[str, tuple[list[Control], dict[str, Any]]] = {
    "one": ([Control("canny", picture(1), scale=0.6)], {"sampler": "Euler a"}),
    "a part": ([Control("depth", picture(2), start=0.2, end=0.7)], {"num_inference_steps": 9}),
    "two": (
        [Control("canny", picture(3), 0.7, 0.0, 0.5), Control("depth", picture(4), 1.3, 0.3)],
        {},
    ),
    "unguided": ([Control("canny", picture(5))], {"guidance_scale": 1.0}),
    "two calls a step": ([Control("canny", picture(6), start=0.3)], {"sampler": "Heun"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_steered_sample_equals_the_pipeline_alone_and_among_neighbours(
    steered: Steered, engine: Engine, case: str
) -> None:
    """Neighbours have another ControlNet, the same with another picture, and none; they join before and after."""
    controls, values = CASES[case]
    wanted = job(prompt="apple", seed=31, controls=controls, **values)
    expected = steered.expected(wanted)
    neighbours = [
        job(prompt="frog", seed=5, num_inference_steps=7, controls=[Control("depth", picture(8), 0.9)]),
        job(prompt="rocket", seed=6, guidance_scale=1.0),
        job(prompt="pear", seed=7, controls=[Control("canny", picture(9)), Control("depth", picture(8), end=0.5)]),
    ]
    assert error(draw(engine, [wanted])[0, 0], expected) <= TOLERANCE
    among = draw(engine, [*neighbours[:2], wanted, neighbours[2]], stagger=1)
    assert error(among[2, 0], expected) <= TOLERANCE
    if case == "one":
        for place, neighbour in ((0, neighbours[0]), (1, neighbours[1])):
            assert error(among[place, 0], steered.expected(neighbour)) <= TOLERANCE
    assert max(tick["samples"] for tick in engine.stats()["ticks"]) == 4
    assert error(draw(engine, [job(prompt="apple", seed=31, **values)])[0, 0], expected) > 1e-3


def test_a_longer_prompt_beside_it_changes_nothing(engine: Engine, steered: Steered) -> None:
    """The shorter prompt is padded; what pads it must not be read by the ControlNet either."""
    wanted = job(prompt="apple", seed=31, controls=[Control("canny", picture(1))])
    longer = job(prompt="a very long story of many a small red apple", seed=4, controls=[Control("canny", picture(2))])
    assert error(draw(engine, [longer, wanted])[1, 0], steered.expected(wanted)) <= TOLERANCE


@ONE_FAMILY
def test_each_controlnet_runs_once_a_tick_over_the_rows_that_use_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three samples, one guided and steered by both, one unguided by the first alone, one by none."""
    calls: list[tuple[str, int]] = []
    for kind in (diffusers.ControlNetModel, diffusers.UNet2DConditionModel):
        forward: Callable[..., Any] = kind.forward

        def counted(self: Any, sample: torch.Tensor, *given: Any, forward: Any = forward, **named: Any) -> Any:
            calls.append((type(self).__name__, len(sample)))
            return forward(self, sample, *given, **named)

        monkeypatch.setattr(kind, "forward", counted)
    both = [Control("canny", picture(1)), Control("depth", picture(2), end=0.5)]
    for number, (guidance, controls) in enumerate([(3.0, both), (1.0, both[:1]), (3.0, [])]):
        engine.submit(job(num_inference_steps=4, seed=number, guidance_scale=guidance, controls=controls))
    engine.step()
    first, calls[:] = list(calls), []
    engine.step()
    engine.step()
    assert first == [("ControlNetModel", 3), ("ControlNetModel", 2), ("UNet2DConditionModel", 5)]
    assert calls[-2:] == [("ControlNetModel", 3), ("UNet2DConditionModel", 5)]


@ONE_FAMILY
def test_a_job_with_controls_crosses_processes_as_raw_pixels(engine: Engine) -> None:
    """Whatever form its picture had, the same is drawn on the other side."""
    wanted = job(seed=2, controls=[Control("canny", picture(1))])
    there = pickle.loads(pickle.dumps(wanted.check()))  # noqa: S301 (its own)
    assert isinstance(there.controls[0].image, Picture)
    assert torch.equal(draw(engine, [there])[0, 0], draw(engine, [wanted])[0, 0])


@ONE_FAMILY
def test_a_parked_sample_is_steered_on_where_it_is_resumed(engine: Engine, steered: Steered) -> None:
    """Bit for bit; an engine that lacks the ControlNet, or has another of that name, refuses."""
    wanted = job(seed=3, controls=[Control("canny", picture(1), 0.8)])
    whole = draw(engine, [wanted])[0, 0]
    name = engine.submit(wanted)
    for _ in range(3):
        engine.step()
    state = engine.park(name, 0)
    other = Engine()
    other.load("m", steered.folder, steered.family)
    with pytest.raises(EngineError) as refused:
        other.resume(state)
    assert refused.value.code == "unknown_control"
    other.load("canny", steered.paths["depth"], family="controlnet")
    with pytest.raises(EngineError, match="control canny") as refused:
        other.resume(state)
    assert refused.value.code == "state_mismatch"
    other.load("canny", steered.paths["canny"], family="controlnet")
    other.resume(state)
    assert torch.equal(next(event.value for event in other.run() if event.kind == "image"), whole)
    other.close()


BAD: dict[str, tuple[Control, str, str]] = {
    "unknown": (Control("scribble", picture(1)), "unknown_control", "'scribble' is not loaded; loaded: canny, depth"),
    "of another size": (Control("canny", picture(1, 64, 96)), "invalid_job", "is 64x96, the job draws 64x64; resize"),
    "too strong": (Control("canny", picture(1), scale=3.0), "invalid_job", "scale of control canny is 3.0"),
    "never": (Control("canny", picture(1), start=0.5, end=0.5), "invalid_job", "0 <= start < end <= 1"),
    "no picture": (Control("canny", b"no picture"), "invalid_image", "picture of control canny cannot be read"),
    "no image": (Control("canny", 5), "invalid_image", "is a int; give a PIL image"),
}


@ONE_FAMILY
@pytest.mark.parametrize("case", BAD)
def test_a_bad_control_is_refused_before_anything_is_drawn(engine: Engine, case: str) -> None:
    control, code, message = BAD[case]
    with pytest.raises(EngineError, match=message) as refused:
        engine.submit(job(controls=[control]))
    assert refused.value.code == code
    assert engine.idle


def test_a_controlnet_of_another_family_is_refused(
    sd15: tuple[Any, Path], sdxl: tuple[Any, Path], tmp_path: Path, load: Callable[..., Engine]
) -> None:
    """The width of the text tells them apart."""
    engine = load(sd15[1], "sd15")
    tiny.controlnet(tmp_path, sdxl[0].unet, 1)
    engine.load("canny", tmp_path, family="controlnet")
    with pytest.raises(EngineError, match="cross-attention width of 40, the checkpoint 16") as refused:
        engine.submit(job(controls=[Control("canny", picture(1))]))
    assert refused.value.code == "incompatible_control"


@ONE_FAMILY
def test_a_controlnet_in_use_stays(engine: Engine) -> None:
    """It is freed when no sample names it."""
    name = engine.submit(job(controls=[Control("canny", picture(1))]))
    with pytest.raises(EngineError, match="in use"):
        engine.unload("canny")
    engine.cancel(name)
    engine.unload("canny")
    assert list(engine.stats()["controls"]) == ["depth"]


def test_an_adapter_changes_the_checkpoint_and_not_the_controlnet(tmp_path: Path, load: Callable[..., Engine]) -> None:
    """As in diffusers; beside it a sample with neither."""
    lora = make_lora(tmp_path / "ink.safetensors", "diffusers", seed=1)
    models: Any = diffusers
    pipeline = models.StableDiffusionPipeline.from_pretrained(POCKET, local_files_only=True)
    net = tiny.controlnet(tmp_path / "canny", pipeline.unet, 1)
    made = models.StableDiffusionControlNetPipeline(**pipeline.components, controlnet=net)
    made.set_progress_bar_config(disable=True)
    made.load_lora_weights(tmp_path, weight_name=lora.name, local_files_only=True)
    engine = load(POCKET, "sd15")
    engine.load("canny", tmp_path / "canny", family="controlnet")
    engine.load_lora("ink", lora, model="m")
    guide = picture(1, **WORLD)
    wanted = job(**WORLD, seed=8, sampler="DDIM", loras=[LoRA("ink")], controls=[Control("canny", guide)])
    expected = reference(made, wanted, image=guide)
    drawn = draw(engine, [job(**WORLD, seed=8, sampler="DDIM"), wanted, replace(wanted, loras=[])])
    assert error(drawn[1, 0], expected) <= TOLERANCE
    assert error(drawn[2, 0], expected) > 1e-3
