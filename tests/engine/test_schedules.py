"""Schedule types: how a sampler's steps are spread over the noise, in diffusers' schedulers and in ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest

from streamapp.engine import EngineError, Job
from streamapp.engine.names import SCHEDULES, sampler_name
from tests.engine import tiny
from tests.engine.references import TOLERANCE, Load, both, reference
from tests.engine.test_exact import draw, error, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
#: Sampler and schedule → what diffusers calls them.
CASES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("Euler", "Karras"): ("EulerDiscrete", {"use_karras_sigmas": True}),
    ("Euler", "Exponential"): ("EulerDiscrete", {"use_exponential_sigmas": True}),
    ("Euler", "SGM Uniform"): ("EulerDiscrete", {"timestep_spacing": "trailing"}),
    ("DPM++ 2M", "Exponential"): ("DPMSolverMultistep", {"use_exponential_sigmas": True}),
    ("DPM++ 2M", "Beta"): ("DPMSolverMultistep", {"use_beta_sigmas": True}),
    ("DPM++ 2M SDE", "Exponential"): (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "use_exponential_sigmas": True},
    ),
    ("DPM++ SDE", "Exponential"): ("DPMSolverSDE", {"use_exponential_sigmas": True, "noise_sampler_seed": 11}),
    ("UniPC", "Karras"): ("UniPCMultistep", {"use_karras_sigmas": True}),
    ("Heun", "SGM Uniform"): ("HeunDiscrete", {"timestep_spacing": "trailing"}),
    ("LMS", "Exponential"): ("LMSDiscrete", {"use_exponential_sigmas": True}),
    ("Euler a", "SGM Uniform"): ("EulerAncestralDiscrete", {"timestep_spacing": "trailing"}),
    ("DDIM", "trailing"): ("DDIM", {"timestep_spacing": "trailing"}),
}


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_schedule_equals_the_schedulers_alone_and_among_neighbours(
    sd15: tuple[Any, Path], load: Load, case: tuple[str, str]
) -> None:
    """Named beside the sampler or behind its name; without it another picture comes out."""
    (pipeline, folder), (sampler, schedule), (kind, options) = sd15, case, CASES[case]
    wanted = job(sampler=sampler, schedule=schedule, seed=11, num_inference_steps=5)
    own: Any = getattr(diffusers, f"{kind}Scheduler")
    expected = reference(pipeline, wanted, own.from_config(pipeline.scheduler.config, **options))
    engine = load(folder, "sd15")
    for drawn in both(engine, wanted):
        assert error(drawn, expected) <= TOLERANCE
    name = sampler_name(sampler, schedule)
    plain = job(sampler=sampler, seed=11, num_inference_steps=5)
    two = draw(engine, [job(sampler=name, seed=11, num_inference_steps=5), plain])
    assert error(two[0, 0], expected) <= TOLERANCE
    assert error(two[1, 0], expected) > 1e-3


def test_the_checkpoints_own_sampler_takes_a_schedule_where_it_can(load: Load, tmp_path: Path) -> None:
    """Instead of the one that its configuration names; the picture says which sampler it was."""
    own: Any = diffusers.EulerDiscreteScheduler
    scheduler = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    pipeline = tiny.sd(tmp_path, scheduler=scheduler)
    engine = load(tmp_path, "sd15")
    wanted = job(schedule="Exponential", seed=3)
    options = {"use_karras_sigmas": False, "use_exponential_sigmas": True}
    expected = reference(pipeline, wanted, own.from_config(pipeline.scheduler.config, **options))
    assert error(draw(engine, [wanted])[0, 0], expected) <= TOLERANCE
    assert error(draw(engine, [job(seed=3)])[0, 0], expected) > 1e-3
    picture: Any = draw(engine, [job(schedule="Exponential", output="rgb")])[0, 0]
    assert picture.info["sampler"] == "Euler Exponential"


def test_pndm_is_drawn_where_a_checkpoint_names_it(load: Load, tmp_path: Path) -> None:
    """The published folders of Stable Diffusion 1 name it; only ``Auto`` means it."""
    scheduler = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    pipeline = tiny.sd(tmp_path, scheduler=scheduler)
    engine, wanted = load(tmp_path, "sd15"), job(seed=3)
    expected = reference(pipeline, wanted)
    for drawn in both(engine, wanted):
        assert error(drawn, expected) <= TOLERANCE
    assert error(draw(engine, [job(seed=3, sampler="DDIM")])[0, 0], expected) > 1e-3
    with pytest.raises(EngineError, match="own sampler \\(PNDMScheduler\\) cannot take that schedule"):
        engine.submit(job(schedule="Karras"))


@pytest.mark.parametrize(
    ("sampler", "schedule", "says"),
    [
        ("Euler", "Polyexponential", "known: Karras, Exponential"),
        ("DDIM", "Karras", "DDIM cannot take the schedule Karras"),
        ("Euler a", "Beta", "Euler a cannot take"),
        ("LCM", "SGM Uniform", "LCM cannot take"),
        ("DPM++ 2M Karras", "Exponential", "has the schedule Karras and Exponential is asked for"),
        ("UniPC Beta", "Exponential", "names the schedule Beta"),
        ("DPM++ 2M Karras Beta", None, "has the schedule Karras and Beta is asked for"),
    ],
)
def test_what_a_sampler_cannot_take_is_refused_by_name(sampler: str, schedule: str | None, says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        Job("m", sampler=sampler, schedule=schedule).check()
    assert (caught.value.code, caught.value.details["field"]) == ("unknown_schedule", "schedule")


@pytest.mark.parametrize("schedule", [*SCHEDULES, None, "Automatic"])
def test_names_come_back_as_they_are_written(schedule: str | None) -> None:
    name = sampler_name("dpm++", schedule)
    assert sampler_name(name.upper()) == name
    assert sampler_name(name, schedule) == name
    assert name == ("DPM++ 2M" if schedule in (None, "Automatic") else f"DPM++ 2M {schedule}")
