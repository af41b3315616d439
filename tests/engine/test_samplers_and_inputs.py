"""Every sampler with every kind of input: from a picture, into a mask, steered, with a LoRA; all in one batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamapp.engine import Control, Engine, Job, LoRA
from streamapp.engine.names import AUTO
from tests.engine.references import TOLERANCE, reference
from tests.engine.test_controls import Steered
from tests.engine.test_exact import draw, error, job
from tests.engine.test_image_inputs import Family, mask, picture
from tests.engine.test_lora_files import factors

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
    pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
SAMPLERS = [AUTO, "DDIM", "Euler a", "DPM++ 2M", "UniPC", "Heun", "LMS", "DPM++ SDE"]
#: What a job has beside its words.
FEATURES: dict[str, dict[str, Any]] = {
    "picture": {"image": picture(1), "strength": 0.7},
    "mask": {"image": picture(1), "mask_image": mask(), "strength": 0.8},
    "control": {"controls": [Control("canny", picture(2), 0.9, 0.0, 0.8)]},
    "lora": {"loras": [LoRA("ink", 0.8)]},
}


class Drawn:
    """A family's pipelines over one checkpoint, and an engine that has it, a ControlNet and a LoRA."""

    def __init__(self, family: str, pipeline: Any, folder: Path, room: Path) -> None:
        self.steered = Steered(family, pipeline, folder, room)
        self.engine: Engine = self.steered.engine()
        self.pictured = Family(family, pipeline, folder)
        self.pictured.engine.close()
        save_file(factors(pipeline.unet, "unet"), room / "ink.safetensors")
        self.engine.load_lora("ink", room / "ink.safetensors", model="m")
        self.adapted = type(pipeline).from_pretrained(folder, local_files_only=True)
        self.adapted.set_progress_bar_config(disable=True)
        with warnings.catch_warnings(action="ignore"):
            self.adapted.load_lora_weights(room, weight_name="ink.safetensors", adapter_name="ink")
        self.adapted.set_adapters(["ink"], [0.8])

    def expected(self, wanted: Job) -> torch.Tensor:
        """What diffusers draws."""
        if wanted.loras:
            return reference(self.adapted, wanted)
        return self.pictured.expected(wanted) if wanted.image is not None else self.steered.expected(wanted)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipeline, folder = request.getfixturevalue(request.param)
    made = Drawn(request.param, pipeline, folder, tmp_path_factory.mktemp(request.param))
    yield made
    made.engine.close()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_equals_its_pipeline_alone_and_among_the_others(drawn: Drawn, sampler: str) -> None:
    """They join one after the other and share every forward; without its feature each is another picture."""
    values: dict[str, Any] = {"prompt": "apple", "seed": 31, "sampler": sampler, "num_inference_steps": 5}
    jobs = [job(**values, **given) for given in FEATURES.values()]
    among = draw(drawn.engine, [job(**values), *jobs], stagger=1)
    for number, (feature, wanted) in enumerate(zip(FEATURES, jobs, strict=True), start=1):
        expected = drawn.expected(wanted)
        assert error(among[number, 0], expected) <= TOLERANCE, feature
        assert error(draw(drawn.engine, [wanted])[0, 0], expected) <= TOLERANCE, feature
        assert error(among[0, 0], expected) > 1e-3, feature
    assert max(tick["samples"] for tick in drawn.engine.stats()["ticks"]) >= 3
