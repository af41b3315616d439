"""LoRAs that are unloaded while jobs that name them are here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamapp.engine import Engine, Event, LoRA
from tests.engine.test_exact import POCKET
from tests.engine.test_exact import job as drawn_job
from tests.models.make_lora import make_lora

NAMES = ("ink", "oil")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """With two LoRAs, one row a tick."""
    made = Engine(max_batch_rows=2)
    made.load("m", POCKET, "sd15")
    for number, name in enumerate(NAMES):
        made.load_lora(name, make_lora(tmp_path / f"{name}.safetensors", "kohya", seed=number, rank=4), "m")
    return made


def latents(events: list[Event]) -> dict[str, Any]:
    """By job."""
    return {event.job_id: event.value for event in events if event.kind == "image"}


def test_a_job_that_waits_for_its_encoding_fails_and_its_neighbours_do_not(engine: Engine) -> None:
    """With a code that says what to do; nothing of it stays behind."""
    engine.submit(drawn_job(), "plain")
    engine.submit(drawn_job(loras=[LoRA("ink")], num_images=2), "inked")
    engine.unload_lora("ink")
    events = list(engine.run())
    assert list(latents(events)) == ["plain"]
    (failed,) = [event for event in events if event.kind == "failed"]
    assert (failed.job_id, failed.index, failed.value.code) == ("inked", -1, "unknown_lora")


def test_samples_under_way_are_drawn_with_their_loras_to_the_end(engine: Engine) -> None:
    """Several sizes in turn, LoRAs unloaded one after the other, parked in between: bit for bit as with them there."""
    jobs = {
        "ink": drawn_job(loras=[LoRA("ink")], seed=1),
        "wide": drawn_job(loras=[LoRA("oil")], seed=2, width=128),
        "both": drawn_job(loras=[LoRA("ink", 0.5), LoRA("oil", 0.5)], seed=3, height=128),
    }

    def drawn(unload: bool) -> dict[str, Any]:
        for name, each in jobs.items():
            engine.submit(each, name)
        events = [event for _ in range(4) for event in engine.step()]
        assert engine.stats()["running"] == 3
        for name in NAMES if unload else ():
            engine.unload_lora(name)
        assert len(engine.snapshots()) == 3
        return latents([*events, *engine.run()])

    before, after = drawn(unload=False), drawn(unload=True)
    assert before.keys() == after.keys() == jobs.keys()
    assert all(torch.equal(before[name], after[name]) for name in jobs)
    assert engine.stats()["loras"] == {}
