"""Bad input: a code and a sentence, in this process and through another, and neighbours that do not notice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamapp.engine import Engine, EngineError, EngineProcess, Event, Job, LoRA
from streamapp.engine.host import run_command
from tests.engine.references import TOLERANCE
from tests.engine.test_exact import error, job
from tests.engine.test_image_inputs import mask
from tests.engine.test_lora_files import factors

OVER = {"image", "failed", "cancelled"}
NEIGHBOUR = job(seed=4, num_inference_steps=8, prompt="apple")


@pytest.fixture(scope="module", params=[Engine, EngineProcess])
def engine(request: pytest.FixtureRequest, sd15: tuple[Any, Path]) -> Any:
    # A busy machine may take long to import: nothing here depends on how long.
    patience = {"start_grace": 600.0} if request.param is EngineProcess else {}
    made = request.param(max_batch_rows=16, **patience)
    made.load("m", sd15[1], "sd15")
    yield made
    made.close()


def until_over(engine: Any, jobs: set[str]) -> dict[str, Any]:
    """How each job ended."""
    ends: dict[str, Any] = {}
    limit = time.monotonic() + 60
    while jobs - ends.keys():
        assert time.monotonic() < limit, ends
        events: list[Event] = engine.step(0.1)
        ends |= {event.job_id: event.value for event in events if event.kind in OVER}
    return ends


def refused(engine: Any, wanted: Job) -> EngineError:
    """What a job is refused with, beside a neighbour that is drawn on as if alone."""
    engine.submit(NEIGHBOUR, "alone")
    alone = until_over(engine, {"alone"})["alone"]
    engine.submit(NEIGHBOUR, "neighbour")
    engine.step()
    jobs = {"neighbour"}
    problem: Any = None
    try:
        engine.submit(wanted, "bad")
        jobs.add("bad")
    except EngineError as raised:
        problem = raised
    ends = until_over(engine, jobs)
    assert error(ends["neighbour"], alone) <= TOLERANCE
    found: EngineError = problem or ends["bad"]
    assert isinstance(found, EngineError)
    return found


REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "sampler": ({"sampler": "Eulr a"}, "unknown_sampler", "sampler", "did you mean Euler a"),
    "schedule": ({"schedule": "Polyexponential"}, "unknown_schedule", "schedule", "known: Karras"),
    "size": ({"width": 100}, "invalid_job", "width", "sides must be multiples of 8"),
    "too large": ({"height": 4096}, "invalid_job", "height", "between 64 and 2048"),
    "no steps": ({"num_inference_steps": 0}, "invalid_job", "num_inference_steps", "between 1 and 150"),
    "steps": ({"num_inference_steps": 151}, "invalid_job", "num_inference_steps", "between 1 and 150"),
    "guidance": ({"guidance_scale": 30.5}, "invalid_job", "guidance_scale", "between 0 and 30"),
    "images": ({"num_images": 101}, "invalid_job", "num_images", "between 1 and 100"),
    "mask": ({"mask_image": mask()}, "invalid_job", "mask_image", "needs the image it belongs to"),
    "no picture": ({"image": b"none"}, "invalid_image", "image", "cannot be read"),
    "adapters": ({"loras": [LoRA(str(n)) for n in range(6)]}, "invalid_job", "loras", "at most 5"),
    "adapter": ({"loras": [LoRA("absent")]}, "unknown_lora", "loras", "'absent' is not loaded"),
    "clip_skip": ({"clip_skip": 9}, "invalid_job", "clip_skip", "takes 1 to 3"),
    "no prompt": ({"prompt": None}, "invalid_job", "prompt", "must be text"),
    "half a character": ({"prompt": "a \ud83d"}, "invalid_job", "prompt", "lone surrogate"),
    "text for a number": ({"width": "64"}, "invalid_job", "width", "must be a whole number"),
    "part of a seed": ({"seed": 1.5}, "invalid_job", "seed", "must be a whole number"),
    "text for adapters": ({"loras": "absent"}, "invalid_job", "loras", "must be a list of LoRA"),
    "text for a weight": ({"loras": [LoRA("absent", "1")]}, "invalid_job", "loras", "must be a number"),  # type: ignore[arg-type]
    "output": ({"output": "tensor"}, "invalid_job", "output", "must be pil, rgb or latent"),
    "model": ({"model": "other"}, "unknown_model", "model", "loaded: m"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_job_is_refused_naming_the_field(engine: Any, case: str) -> None:
    given, code, field, says = REFUSED[case]
    found = refused(engine, job(**given))
    assert (found.code, found.details.get("field")) == (code, field)
    assert says in found.message


def test_a_job_that_fails_unforeseen_ends_too() -> None:
    """Hosts hand jobs over without waiting for an answer: silence would leave one running for ever."""

    class Faulty:
        def submit(self, *_: object) -> str:
            raise KeyError("missing")

    calls: dict[str, tuple[Any, ...]] = {"submit": (NEIGHBOUR, "bad"), "redraw": ("bad", NEIGHBOUR, [0], {})}
    for name, args in calls.items():
        events: list[Event] = []
        run_command(cast("Engine", Faulty()), name, args, events)
        assert [(each.job_id, each.kind, each.value.code) for each in events] == [("bad", "failed", "internal")]
        assert "KeyError" in events[0].value.message


def test_a_latent_that_is_no_number_fails_alone(engine: Any, sd15: tuple[Any, Path], tmp_path: Path) -> None:
    """A LoRA with absurd factors spoils its own row of the shared forward, no other."""
    file = tmp_path / "absurd.safetensors"
    save_file({key: tensor * 1e30 for key, tensor in factors(sd15[0].unet, "unet").items()}, file)
    engine.load_lora("absurd", file, model="m")
    found = refused(engine, job(loras=[LoRA("absurd")], seed=1))
    assert found.code == "not_finite"
    assert "try another seed" in found.message
    engine.unload_lora("absurd")


BROKEN = ("of another family", "cut short", "not safetensors", "absent")


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_file_is_refused_and_what_is_loaded_stays(
    engine: Any, sd15: tuple[Any, Path], sdxl: tuple[Any, Path], tmp_path: Path, case: str
) -> None:
    """As a LoRA and as a checkpoint."""
    file = tmp_path / "bad.safetensors"
    if case == "of another family":
        save_file(factors(sdxl[0].unet, "unet"), file)
    elif case == "cut short":
        save_file(factors(sd15[0].unet, "unet"), file)
        assert load_file(file)
        file.write_bytes(file.read_bytes()[:-100])
    elif case == "not safetensors":
        file.write_bytes(b"no weights at all" * 100)
    with pytest.raises(EngineError) as caught:
        engine.load_lora("bad", file, model="m")
    other = case == "of another family"
    assert caught.value.code == ("incompatible_lora" if other else "load_failed")
    assert "made for another family" in caught.value.message if other else file.name in caught.value.message
    assert ("layer" in caught.value.details) == other
    with pytest.raises(EngineError) as caught:
        engine.load("other", file, "sd15")
    assert caught.value.code == "load_failed"
    engine.submit(NEIGHBOUR, "after")
    assert isinstance(until_over(engine, {"after"})["after"], torch.Tensor)
    assert list(engine.stats()["checkpoints"]) == ["m"]
