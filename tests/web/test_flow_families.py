"""What requests may ask of models that are trained by flow matching: guidance, samplers, sizes, defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamapp.db import ModelRow
from tests.web.conftest import Api, Serve


def model(name: str, family: str, **traits: Any) -> ModelRow:
    return ModelRow(
        name=name, version="1", family=family, source="file:", path=name, digest=name * 8, size=1, traits=traits
    )


@pytest.fixture
async def api(serve: Serve) -> AsyncIterator[Api]:
    """A service that knows one of each."""
    async with serve(families=("sd15", "sd3", "flux", "qwen_image")) as api:
        for row in (
            model("dev", "flux", variant="dev"),
            model("schnell", "flux", variant="schnell"),
            model("three", "sd3"),
            model("turbo", "sd3", variant="turbo", sampler="Euler a"),
            model("reader", "qwen_image"),
        ):
            await api.runtime.registry.add_model(row)
        yield api


async def params(api: Api, **given: Any) -> tuple[Any, list[str]]:
    """What a request became, and the notes of its answer."""
    answer = (await api.generate({"text": "a fox", "params": given})).data
    row = await api.runtime.tasks.get(answer["task_id"])
    assert row is not None
    return row.params, answer["notes"]


DEFAULTS = {
    "dev": (28, 3.5, "1024x1024"),
    "schnell": (4, 0.0, "1024x1024"),
    "three": (28, 4.5, "1024x1024"),
    "turbo": (4, 1.0, "1024x1024"),
    "reader": (50, 4.0, "1328x1328"),
}


@pytest.mark.parametrize("name", DEFAULTS)
async def test_what_is_left_open_is_what_its_publisher_says(api: Api, name: str) -> None:
    found, notes = await params(api, model=name)
    assert (found.steps, found.guidance, str(found.drawn)) == DEFAULTS[name]
    assert (found.sampler, found.true_cfg, notes) == ("Euler", 1.0, [])


async def test_flux_takes_a_negative_prompt_with_its_own_scale_only(api: Api) -> None:
    refused = await api.generate({"text": "a fox", "params": {"model": "dev", "negative_text": "blurry"}})
    assert "true_cfg_scale above 1" in refused.refused(400, "invalid_request", field="negative_text")
    found, notes = await params(api, model="dev", negative_text="blurry", true_cfg_scale=3)
    assert (found.true_cfg, found.negative_prompt, notes) == (3.0, "blurry", [])
    found, (note,) = await params(api, model="dev", true_cfg_scale=3)
    assert found.true_cfg == 1
    assert "there is no negative_text" in note
    other = await api.generate({"text": "a fox", "params": {"model": "three", "true_cfg_scale": 3}})
    other.refused(400, "invalid_request", field="true_cfg_scale")
    # The others have a branch for it.
    assert (await params(api, model="reader", negative_text="blurry"))[0].negative_prompt == "blurry"


async def test_schnell_ignores_guidance_and_says_so(api: Api) -> None:
    found, (note,) = await params(api, model="schnell", cfg_scale=7)
    assert found.guidance == 0
    assert "7 was left out: schnell draws without guidance" in note


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM", "Heun", "DPM++ 2M Karras"])
async def test_samplers_for_other_models_are_refused_by_name(api: Api, sampler: str) -> None:
    refused = await api.generate({"text": "a fox", "params": {"model": "three", "sampler": sampler}})
    message = refused.refused(400, "invalid_request", field="sampler")
    assert sampler in message
    assert "use Euler, UniPC, DPM++ 2M" in message
    assert (await params(api, model="three", sampler="flow-match euler"))[0].sampler == "Euler"


async def test_sizes_go_in_steps_of_sixteen_and_layers_are_not_skipped(api: Api) -> None:
    found, notes = await params(api, model="dev", resolution="1000x1000")
    assert (found.drawn.width % 16, found.drawn.height % 16, str(found.delivered)) == (0, 0, "1000x1000")
    assert notes
    skipped = await api.generate({"text": "a fox", "params": {"model": "dev", "clip_skip": 2}})
    skipped.refused(400, "invalid_request", field="clip_skip")
