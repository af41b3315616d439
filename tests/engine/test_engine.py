"""What every host of an engine promises, with the family that costs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamapp.engine import Engine, EngineError, EngineProcess, Event, Job, LoRA
from streamapp.engine.families.fake import CRASH, HANG, SPOIL
from streamapp.engine.host import EngineThread
from streamapp.engine.names import SAMPLERS, sampler_name
from streamapp.engine.process import stuck
from streamapp.engine.wire import Beat

OVER = {"image", "failed", "cancelled"}


def job(**given: Any) -> Job:
    """A tiny job with raw output."""
    return Job(**{"model": "m", "width": 64, "height": 64, "num_inference_steps": 4, "output": "rgb", **given})


def wait_for(condition: Callable[[], bool], within: float = 30.0) -> None:
    """Poll until true, with a bound."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.01)


def collect(engine: Any, count: int) -> list[Event]:
    """Events until ``count`` images, failures or cancellations were seen."""
    events: list[Event] = []
    end = time.monotonic() + 30
    while sum(event.kind in OVER for event in events) < count:
        assert time.monotonic() < end, events
        events += engine.step(0.1)
    return events


@pytest.fixture(params=["engine", "thread", "process"])
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The same promises in this thread, in another, and in a child process."""
    kinds: dict[str, Callable[[], Any]] = {"engine": Engine, "thread": EngineThread, "process": EngineProcess}
    made = kinds[request.param]()
    if request.param != "engine":
        made.start()
    made.load("m", "somewhere", "fake")
    yield made
    made.close()


def test_a_job_gives_progress_and_one_picture_per_image(engine: Any) -> None:
    """Each image reports every step once, in order, and ends with its picture."""
    engine.submit(job(num_images=2, seed=7), "a")
    events = collect(engine, 2)
    for index in (0, 1):
        mine = [event for event in events if event.index == index]
        assert [event.value for event in mine if event.kind == "progress"] == [(s, 4) for s in (1, 2, 3, 4)]
        picture = mine[-1].value
        assert (mine[-1].kind, picture.width, picture.height, len(picture.pixels)) == ("image", 64, 64, 64 * 64 * 3)
        assert picture.info["seed"] == 7 + index
        assert set(picture.info["seconds"]) == {"encode", "denoise", "decode"}


def test_the_same_seed_gives_the_same_picture_and_another_another(engine: Any) -> None:
    """Pictures depend on what was asked, not on when."""
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        engine.submit(job(seed=seed), name)
    pictures = {e.job_id: e.value.pixels for e in collect(engine, 3) if e.kind == "image"}
    assert pictures["a"] == pictures["c"] != pictures["b"]


def test_a_spoilt_sample_fails_alone(engine: Any) -> None:
    """Its neighbours in the batch are not touched."""
    engine.submit(job(prompt=SPOIL), "bad")
    engine.submit(job(prompt="fine"), "good")
    ends = {e.job_id: (e.kind, getattr(e.value, "code", None)) for e in collect(engine, 2) if e.kind in OVER}
    assert ends == {"bad": ("failed", "not_finite"), "good": ("image", None)}


def test_a_job_for_a_model_that_is_not_loaded_is_refused(engine: Any) -> None:
    """In this thread by an exception, from elsewhere by an event; the code is the same."""
    if isinstance(engine, Engine):
        with pytest.raises(EngineError) as caught:
            engine.submit(job(model="other"), "x")
        assert caught.value.code == "unknown_model"
    else:
        engine.submit(job(model="other"), "x")
        (event,) = collect(engine, 1)
        assert (event.index, event.kind, event.value.code) == (-1, "failed", "unknown_model")


@pytest.mark.parametrize(
    ("field", "wrong", "code"),
    [
        ("width", 100, "invalid_job"),
        ("height", 32, "invalid_job"),
        ("num_inference_steps", 0, "invalid_job"),
        ("num_inference_steps", 151, "invalid_job"),
        ("guidance_scale", float("nan"), "invalid_job"),
        ("guidance_scale", 31, "invalid_job"),
        ("num_images", 101, "invalid_job"),
        ("seed", -1, "invalid_job"),
        ("sampler", "Eulr", "unknown_sampler"),
        ("loras", [LoRA("absent")], "unknown_lora"),
        ("loras", [LoRA(str(n)) for n in range(6)], "invalid_job"),
        ("loras", [LoRA("a", 2.5)], "invalid_job"),
        ("mask_image", object(), "invalid_job"),
        ("clip_skip", 0, "invalid_job"),
    ],
)
def test_bad_values_are_refused_with_a_code_and_a_sentence(field: str, wrong: Any, code: str) -> None:
    """Before anything runs, naming what to change."""
    engine = Engine()
    engine.load("m", "somewhere", "fake")
    with pytest.raises(EngineError) as caught:
        engine.submit(job(**{field: wrong}))
    assert caught.value.code == code
    assert len(caught.value.message) > 15
    assert engine.idle


def test_samplers_are_found_whatever_their_capitals_and_near_misses_are_named() -> None:
    """Users paste names from elsewhere."""
    assert sampler_name("dpm++ 2m karras") == "DPM++ 2M Karras"
    assert sampler_name("DPM++") == "DPM++ 2M"
    with pytest.raises(EngineError, match="did you mean Euler a"):
        sampler_name("Eulera")
    assert all(sampler_name(name) == name for name in SAMPLERS)


def test_samples_join_and_leave_between_ticks_and_share_forwards() -> None:
    """A late job is drawn beside a running one; the cap bounds rows; keys take turns."""
    engine = Engine(max_batch_rows=8)
    engine.load("m", "somewhere", "fake")
    engine.submit(job(num_inference_steps=6), "first")
    engine.step()
    engine.submit(job(num_images=5, num_inference_steps=3), "late")
    engine.submit(job(width=128, num_inference_steps=3), "wide")
    list(engine.run())
    ticks = engine.stats()["ticks"]
    assert max(tick["rows"] for tick in ticks) == 8
    keys = [tick["key"] for tick in ticks if len({tick["key"] for tick in ticks}) > 1]
    both = keys.index(("m", 8, 16))
    assert keys[both : both + 4] == [("m", 8, 16), ("m", 8, 8), ("m", 8, 16), ("m", 8, 8)]
    assert sum(tick["samples"] for tick in ticks) == 6 + 5 * 3 + 3


def test_cancel_takes_out_one_image_or_the_whole_job() -> None:
    """At the next tick, wherever the sample is; the others run on."""
    engine = Engine(max_batch_rows=4)
    engine.load("m", "somewhere", "fake")
    engine.submit(job(num_images=4), "a")
    engine.submit(job(), "b")
    events = engine.step()
    engine.cancel("a", 1)
    events += engine.step()
    engine.cancel("a")
    events += list(engine.run())
    ends = [(e.job_id, e.index, e.kind) for e in events if e.kind in OVER]
    assert sorted(ends) == [
        ("a", 0, "cancelled"),
        ("a", 1, "cancelled"),
        ("a", 2, "cancelled"),
        ("a", 3, "cancelled"),
        ("b", 0, "image"),
    ]


def test_a_checkpoint_in_use_is_neither_replaced_nor_freed() -> None:
    """A running batch never has its weights changed under it."""
    engine = Engine()
    engine.load("m", "somewhere", "fake")
    engine.submit(job())
    engine.step()
    with pytest.raises(EngineError, match="in use"):
        engine.load("m", "elsewhere", "fake")
    with pytest.raises(EngineError, match="in use"):
        engine.unload("m")
    list(engine.run())
    engine.unload("m")
    assert engine.stats()["checkpoints"] == {}


def test_a_killed_child_fails_its_jobs_and_comes_back_with_its_weights() -> None:
    """With one attempt whether to draw again is the caller's decision: nothing is submitted twice behind its back."""
    engine = EngineProcess(attempts=1)
    engine.start()
    try:
        engine.load("m", "somewhere", "fake")
        engine.load_lora("style", "there", "m")
        engine.submit(job(prompt=HANG, num_images=2), "held")
        first = engine.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        (event,) = [e for e in collect(engine, 1) if e.kind in OVER]
        assert (event.job_id, event.index, event.value.code, event.value.retryable) == (
            "held",
            -1,
            "engine_crashed",
            True,
        )
        wait_for(lambda: engine.state == "ready")
        assert engine.pid != first
        engine.submit(job(loras=[LoRA("style")]), "next")
        assert [e.kind for e in collect(engine, 1)][-1] == "image"
    finally:
        engine.close()


def test_a_child_that_kills_itself_and_one_that_hangs_are_both_replaced() -> None:
    """A crash is seen at once, a hung tick after the limit."""
    engine = EngineProcess(hung_after=3.0, attempts=1)
    engine.start()
    try:
        engine.load("m", "somewhere", "fake")
        for prompt in (CRASH, HANG):
            wait_for(lambda: engine.state == "ready")
            before = engine.restarts
            engine.submit(job(prompt=prompt), prompt)
            (end,) = [e for e in collect(engine, 1) if e.kind in OVER]
            assert end.value.code == "engine_crashed"
            wait_for(lambda before=before: engine.restarts > before)  # type: ignore[misc]
    finally:
        engine.close()


def test_a_forward_is_judged_by_the_ones_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before the limit for steps that nothing is known of; slow ones that were always slow go on."""
    assert not stuck(Beat(500.0, 500.0, 60.0))
    assert not stuck(Beat(19.0, 19.0, 0.01))
    assert stuck(Beat(21.0, 21.0, 0.01))
    assert not stuck(Beat(200.0))  # encoding, or the first forward of its kind
    monkeypatch.setattr("streamapp.engine.process.STUCK_S", 3.0)
    engine = EngineProcess(attempts=1)
    try:
        engine.load("m", "somewhere", "fake")
        engine.submit(job(num_inference_steps=4), "learned from")
        assert collect(engine, 1)[-1].kind == "image"
        engine.submit(job(prompt=HANG), "hangs")
        (end,) = [e for e in collect(engine, 1) if e.kind in OVER]
        assert (end.job_id, end.value.code) == ("hangs", "engine_crashed")
    finally:
        engine.close()


def test_the_child_ends_with_its_parent_also_in_mid_tick() -> None:
    """Kill -9 of the parent runs no handler: the child notices the closed pipe."""
    program = (
        "import sys, time\n"
        "from streamapp.engine import EngineProcess, Job\n"
        "engine = EngineProcess(); engine.start(); engine.load('m', 'x', 'fake')\n"
        f"engine.submit(Job('m', {HANG!r}, width=64, height=64), 'a')\n"
        "time.sleep(0.3); print(engine.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    wait_for(lambda: not _alive(child), within=2.0)


def test_the_child_ignores_what_the_terminal_tells_the_whole_group() -> None:
    """Running work is the parent's to finish or to hand back."""
    engine = EngineProcess()
    try:
        engine.load("m", "somewhere", "fake")
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGINT)
        engine.submit(job(), "a")
        assert (collect(engine, 1)[-1].kind, engine.restarts) == ("image", 0)
    finally:
        engine.close()


def test_nothing_here_needed_torch() -> None:
    """The package, its hosts and the fake family import without it (the parent of an engine process never loads it)."""
    program = (
        "import sys, streamapp.engine, streamapp.engine.aio, streamapp.engine.families.fake as f\n"
        "print([m for m in ('torch', 'diffusers', 'faust', 'sqlalchemy', 'aiohttp') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
