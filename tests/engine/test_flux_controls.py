"""ControlNets of Flux on tiny random weights: pictures equal the diffusers pipeline's, alone and among neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from streamapp.engine import Control, Engine, EngineError, Job
from tests.engine import tiny, tiny_flux
from tests.engine.flow_references import reference
from tests.engine.references import TOLERANCE
from tests.engine.test_exact import draw, error, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
#: Of each net: double and single blocks, further settings.
NETS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "pose": (1, 1, {}),
    "edges": (2, 0, {"guidance_embeds": True}),
    "union": (1, 2, {"num_mode": 3}),
    "hint": (2, 0, {"conditioning_embedding_channels": 4, "patch_size": 2}),
}


def picture(seed: int, width: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, width, 3), dtype=np.uint8))


@dataclass
class Steered:
    """A checkpoint with three double and two single blocks, and ControlNets for it."""

    pipeline: Any
    folder: Path
    nets: dict[str, Any]

    def expected(self, wanted: Job) -> torch.Tensor:
        """What ``FluxControlNetPipeline`` draws."""
        kind: Any = diffusers.FluxControlNetPipeline
        many: Any = diffusers.FluxMultiControlNetModel
        nets = [self.nets[each.model] for each in wanted.controls]
        single = len(nets) == 1
        parts = {**self.pipeline.components, "controlnet": nets[0] if single else many(nets)}
        for unused in ("image_encoder", "feature_extractor"):
            parts.pop(unused, None)
        steered = kind(**parts)
        steered.set_progress_bar_config(disable=True)

        def each(values: list[Any]) -> Any:
            return values[0] if single else values

        return reference(
            steered,
            wanted,
            guidance_scale=wanted.guidance_scale,
            true_cfg_scale=wanted.true_cfg_scale,
            control_image=each([control.image for control in wanted.controls]),
            controlnet_conditioning_scale=each([control.scale for control in wanted.controls]),
            control_guidance_start=each([control.start for control in wanted.controls]),
            control_guidance_end=each([control.end for control in wanted.controls]),
            control_mode=each([control.mode for control in wanted.controls]),
        )


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Steered:
    folder = tmp_path_factory.mktemp("flux-controls")
    pipeline = tiny_flux.flux(folder / "m", layers=(3, 2))
    kind: Any = diffusers.FluxControlNetModel
    nets = {}
    for seed, (name, (double, single, given)) in enumerate(NETS.items()):
        torch.manual_seed(40 + seed)
        config = dict(pipeline.transformer.config)
        keys = (
            "in_channels",
            "attention_head_dim",
            "num_attention_heads",
            "joint_attention_dim",
            "pooled_projection_dim",
        )
        own = {key: config[key] for key in (*keys, "axes_dims_rope")}
        net = tiny.lively(kind(**own, num_layers=double, num_single_layers=single, **given))
        net.save_pretrained(folder / name)
        nets[name] = net.eval()
    return Steered(pipeline, folder, nets)


@pytest.fixture
def engine(steered: Steered) -> Any:
    engine = Engine(max_batch_rows=16)
    engine.load("m", steered.folder / "m", "flux")
    for name in NETS:
        engine.load(name, steered.folder / name, "controlnet")
    yield engine
    engine.close()


CASES = {
    "one": [Control("pose", picture(1), 0.9)],
    "guided net": [Control("edges", picture(2), 0.7)],
    "a mode of a union": [Control("union", picture(3), 0.8, mode=2)],
    "pixels": [Control("hint", picture(4), 0.6)],
    "a share of the steps": [Control("pose", picture(5), 1.0, start=0.3, end=0.8)],
    "two": [Control("pose", picture(6), 0.5), Control("pose", picture(7), 0.9, end=0.5)],
}


@pytest.mark.parametrize("case", CASES)
def test_a_steered_sample_equals_the_pipeline_alone_and_among_neighbours(
    engine: Engine, steered: Steered, case: str
) -> None:
    """Neighbours have other controls, of other depths, and none."""
    wanted = job(seed=11, guidance_scale=3.5, controls=CASES[case])
    expected = steered.expected(wanted)
    neighbours = [
        job(seed=5, num_inference_steps=7, controls=[Control("hint", picture(8), 0.7)]),
        job(seed=6, prompt="a long rocket"),
        job(seed=7, controls=[Control("union", picture(9), 0.9, mode=0), Control("edges", picture(9), 0.4)]),
    ]
    assert error(draw(engine, [wanted])[0, 0], expected) <= TOLERANCE
    assert error(draw(engine, [neighbours[0], wanted, *neighbours[1:]], stagger=1)[1, 0], expected) <= TOLERANCE
    assert max(tick["samples"] for tick in engine.stats()["ticks"]) == 4
    assert error(draw(engine, [job(seed=11, guidance_scale=3.5)])[0, 0], expected) > 1e-3


def test_both_branches_get_what_was_made_for_the_prompt(engine: Engine, steered: Steered) -> None:
    given = {"guidance_scale": 2.0, "negative_prompt": "blue", "true_cfg_scale": 3.0}
    wanted = job(seed=5, controls=CASES["one"], **given)
    drawn = draw(engine, [job(seed=1, controls=CASES["pixels"]), wanted])[1, 0]
    assert error(drawn, steered.expected(wanted)) <= TOLERANCE


def test_every_image_of_a_job_draws_its_own_latents_of_the_picture(engine: Engine, steered: Steered) -> None:
    drawn = draw(engine, [job(seed=20, num_images=2, controls=CASES["one"])])
    assert error(drawn[0, 1], steered.expected(job(seed=21, controls=CASES["one"]))) <= TOLERANCE


def test_a_parked_sample_is_steered_on(engine: Engine) -> None:
    wanted = job(seed=3, controls=CASES["one"])
    whole = draw(engine, [wanted])[0, 0]
    name = engine.submit(wanted)
    for _ in range(3):
        engine.step()
    state = engine.park(name, 0)
    engine.resume(state)
    (again,) = [event.value for event in engine.run() if event.kind == "image"]
    assert torch.equal(again, whole)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no mode": ({"controls": [Control("union", picture(1))]}, "give its mode, 0 to 2"),
    "a mode too many": ({"controls": [Control("pose", picture(1), mode=1)]}, "has no modes"),
    "another size": ({"controls": [Control("pose", picture(1, 96))]}, "96x64, the job draws"),
    "a picture to start from": ({"controls": CASES["one"], "image": picture(1)}, "not both"),
    "a U-Net's": ({"controls": [Control("canny", picture(1))]}, "made for another family"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(engine: Engine, case: str, tmp_path: Path) -> None:
    given, sentence = BAD[case]
    if case == "a U-Net's":
        models: Any = diffusers.UNet2DConditionModel
        pocket = Path(__file__).resolve().parents[2] / "streamapp" / "models" / "pocket"
        tiny.controlnet(tmp_path, models.from_pretrained(pocket / "unet", local_files_only=True), seed=1)
        engine.load("canny", tmp_path, "controlnet")
        engine.load("pocket", pocket)
        with pytest.raises(EngineError, match="made for another family"):
            engine.submit(Job("pocket", width=64, height=64, controls=CASES["one"]))
    with pytest.raises(EngineError, match=sentence) as caught:
        engine.submit(job(**given))
    assert caught.value.details["field"] == "controls"
