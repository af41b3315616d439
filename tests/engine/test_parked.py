"""Parked samples: what comes out of an interruption is what would have come out without."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from streamapp.engine import Engine, EngineError, EngineProcess, Event, Job, LoRA
from streamapp.engine.parked import HEAD, MAGIC, VERSION
from tests.engine.test_engine import collect
from tests.engine.test_engine import job as fake_job
from tests.engine.test_exact import draw, job
from tests.models.make_lora import make_lora

# What diffusers and torchsde warn about; nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
]
SAMPLERS = ["Euler a", "DPM++ 2M Karras", "DPM++ SDE", "UniPC", "Heun"]


def interrupted(engine: Engine, wanted: Job, ticks: int, other: Engine | None = None) -> torch.Tensor:
    """The latent of a job that was parked after some ticks and resumed, here or there."""
    name = engine.submit(wanted)
    for _ in range(ticks):
        engine.step()
    state = engine.park(name, 0)
    assert engine.idle
    return resumed(engine if other is None else other, state)


def resumed(engine: Engine, state: bytes) -> torch.Tensor:
    """The latent of a state."""
    engine.resume(state)
    (drawn,) = [event.value for event in engine.run() if event.kind == "image"]
    assert isinstance(drawn, torch.Tensor)
    return drawn


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_parked_sample_ends_as_if_nothing_had_been(load: Any, sd15: Any, sampler: str) -> None:
    """Whatever the solver keeps and however it draws its noise, in this engine and in a fresh one."""
    _, folder = sd15
    engine, other = load(folder, "sd15"), load(folder, "sd15")
    wanted = job(sampler=sampler, prompt="frog", negative_prompt="blue", seed=4)
    expected = draw(engine, [wanted])[0, 0]
    for ticks in (1, 3, 5):
        assert torch.equal(interrupted(engine, wanted, ticks), expected)
    assert torch.equal(interrupted(engine, wanted, 2, other), expected)
    assert not torch.equal(draw(engine, [job(sampler=sampler, prompt="frog", seed=5)])[0, 0], expected)


def test_what_was_parked_is_a_copy(load: Any, sdxl: Any) -> None:
    """Its neighbours draw on, it waits, and it may be resumed from the same state again."""
    _, folder = sdxl
    engine = load(folder, "sdxl")
    expected = draw(engine, [job(seed=4)])[0, 0]
    name = engine.submit(job(seed=4))
    engine.step()
    state = engine.snapshot(name, 0)
    assert torch.equal(next(e.value for e in engine.run() if e.kind == "image"), expected)
    assert torch.equal(resumed(engine, state), expected)
    assert torch.equal(resumed(engine, state), expected)


def test_a_sample_is_parked_before_its_first_tick_too(load: Any, sd15: Any) -> None:
    """Encoded or not; its image and its job stay what they are."""
    engine = load(sd15[1], "sd15")
    expected = draw(engine, [job(num_images=2, seed=3)])
    name = engine.submit(job(num_images=2, seed=3), "a")
    state = engine.park(name, 1)
    assert engine.resume(state) == "a"
    drawn = {event.index: event.value for event in engine.run() if event.kind == "image"}
    assert all(torch.equal(drawn[index], expected[0, index]) for index in (0, 1))


PROGRAM = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from streamapp.engine import Engine
model, lora, state, out = map(Path, sys.argv[1:])
engine = Engine()
engine.load("m", model, "sd15")
engine.load_lora("ink", lora, model="m")
engine.resume(state.read_bytes())
(drawn,) = [event.value for event in engine.run() if event.kind == "image"]
save_file({"drawn": drawn}, out)
"""


def test_another_process_draws_on_with_the_same_adapters(load: Any, tmp_path: Path) -> None:
    """Bit for bit; the bytes are all that it gets beside the weights."""
    from safetensors.torch import load_file

    from tests.engine.test_exact import POCKET

    lora = make_lora(tmp_path / "ink.safetensors", "kohya", seed=1, rank=4, alpha=2.0)
    engine = load(POCKET, "sd15")
    engine.load_lora("ink", lora, model="m")
    wanted = job(loras=[LoRA("ink", 0.8)], sampler="Euler a", seed=9)
    expected = draw(engine, [wanted])[0, 0]
    name = engine.submit(wanted)
    engine.step()
    (tmp_path / "state").write_bytes(engine.park(name, 0))
    out = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", PROGRAM, POCKET, lora, tmp_path / "state", out], check=True, timeout=120)
    assert torch.equal(load_file(out)["drawn"], expected)


def test_other_weights_are_refused_by_name(load: Any, sd15: Any, sdxl: Any, tmp_path: Path) -> None:
    """The checkpoint, a LoRA of the same name, the precision: each is named."""
    from tests.engine import tiny
    from tests.engine.test_exact import POCKET

    engine, half = load(POCKET, "sd15"), Engine(dtype="bfloat16")
    engine.load_lora("ink", make_lora(tmp_path / "a.safetensors", "kohya", seed=1, rank=4), model="m")
    name = engine.submit(job(loras=[LoRA("ink", 0.8)]))
    engine.step()
    state = engine.park(name, 0)
    assert refused(load(POCKET, "sd15"), state) == ("unknown_lora", None)
    assert refused(load(sd15[1], "sd15"), state)[0] == "unknown_lora"
    engine.load_lora("ink", make_lora(tmp_path / "b.safetensors", "kohya", seed=2, rank=4), model="m")
    assert refused(engine, state) == ("state_mismatch", "LoRA ink")
    first, second = load(sd15[1], "sd15"), tmp_path / "other"
    first.submit(job(), "plain")
    first.step()
    plain = first.park("plain", 0)
    tiny.sd(second, scheduler={"prediction_type": "v_prediction"})
    assert refused(load(second, "sd15"), plain) == ("state_mismatch", "checkpoint")
    assert refused(load(sdxl[1], "sdxl"), plain) == ("state_mismatch", "checkpoint")
    half.load("m", sd15[1], "sd15")
    assert refused(half, plain)[0] == "state_mismatch"
    assert refused(Engine(), plain) == ("unknown_model", None)
    first.resume(plain)
    assert refused(first, plain) == ("invalid_job", None)


def refused(engine: Engine, state: bytes) -> tuple[str, Any]:
    """The code and what differs."""
    with pytest.raises(EngineError) as caught:
        engine.resume(state)
    assert len(caught.value.message) > 20
    return caught.value.code, caught.value.details.get("what")


def test_bytes_that_are_no_state_are_refused() -> None:
    """Foreign, cut, damaged in any place, of another version, or made up with things that no sample holds."""
    engine = Engine()
    engine.load("m", "somewhere", "fake")
    engine.submit(fake_job(), "a")
    engine.step()
    state = engine.park("a", 0)
    for bad in (b"", b"no state", MAGIC, state[:-1], state[: HEAD.size], state + b"more"):
        assert refused(engine, bad)[0] == "bad_state"
    for place in range(0, len(state), 37):
        assert refused(engine, state[:place] + bytes([state[place] ^ 1]) + state[place + 1 :])[0] in {
            "bad_state",
            "state_mismatch",
        }
    assert refused(engine, HEAD.pack(MAGIC, VERSION + 1, 0, 0)) == ("state_mismatch", "version")
    for tree in (b'{"value":"os:system","fields":{}}', b'{"value":"streamapp.engine.engine:Engine","fields":{}}', b"7"):
        body = b'{"identity":{},"sizes":[],"sample":' + tree + b"}"
        assert refused(engine, HEAD.pack(MAGIC, VERSION, zlib.crc32(body), len(body)) + body)[0] == "bad_state"
    engine.resume(state)
    assert [event.kind for event in engine.run()][-1] == "image"


def test_what_is_not_in_the_engine_cannot_be_parked() -> None:
    """Drawn already, or never asked for."""
    engine = Engine()
    with pytest.raises(EngineError) as caught:
        engine.park("a", 0)
    assert caught.value.code == "unknown_sample"


def test_a_process_host_parks_and_another_resumes() -> None:
    """The state crosses the pipe; the job ends where it was resumed."""
    first, second = EngineProcess(max_batch_rows=4), EngineProcess(max_batch_rows=4)
    try:
        for engine in (first, second):
            engine.start()
            engine.load("m", "somewhere", "fake")
        first.submit(fake_job(prompt="fake:slow", num_inference_steps=100, num_images=2), "a")
        while not any(event.kind == "progress" and event.index == 1 for event in first.step(0.1)):
            pass
        state = first.park("a", 1)
        first.cancel("a", 0)
        assert [(e.index, e.kind) for e in collect(first, 1)][-1] == (0, "cancelled")
        assert list(first.run()) == []
        second.resume(state)
        events: list[Event] = []
        while not any(event.kind == "progress" for event in events):
            events += second.step(0.1)
        step, steps = next(event.value for event in events if event.kind == "progress")
        assert (events[0].job_id, events[0].index, steps) == ("a", 1, 100)
        assert step > 1
        second.cancel("a")
        assert list(second.run())[-1].kind == "cancelled"
        with pytest.raises(EngineError) as caught:
            second.resume(b"no state")
        assert caught.value.code == "bad_state"
    finally:
        first.close()
        second.close()
