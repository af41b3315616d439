"""How large batches become: learned from what ticks take, and never larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from streamapp.engine import Engine, EngineError, Event, Job
from streamapp.engine.caps import KINDS
from streamapp.engine.memory import ByteLedger, ran_out
from tests.engine.test_engine import job


@dataclass
class Clock:
    """Seconds that pass only where they are spent."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def engine_with(seconds: Callable[[int], float], clock: Clock | None = None, **given: Any) -> Engine:
    """An engine whose ticks take what a function of their rows says."""
    clock = clock or Clock()
    ledger = given.pop("ledger", None)
    options = {"tick_seconds": seconds, "sleep": clock.sleep, "ledger": ledger}
    engine = Engine(clock=clock, options=options, **given)
    engine.load("m", "somewhere", "fake")
    return engine


def largest(engine: Engine, jobs: list[Job]) -> list[int]:
    """The samples of every tick that these jobs take."""
    for each in jobs:
        engine.submit(each)
    done = [event for event in engine.run() if event.kind == "image"]
    assert len(done) == sum(each.num_images for each in jobs)
    return [tick["samples"] for tick in engine.stats()["ticks"]]


def single(**given: Any) -> Job:
    """A job whose samples take one row."""
    return job(guidance_scale=1.0, num_inference_steps=10, **given)


def test_a_batch_that_costs_nothing_grows_to_the_default() -> None:
    """By doubling: 16 samples at 512², 8 at 1024², 2 beyond."""
    for side, most in ((512, 16), (1024, 8), (2048, 2)):
        sizes = largest(engine_with(lambda _: 0.1), [job(width=side, height=side, num_images=40)])
        assert max(sizes) == most
        assert sizes[0] == 1
        assert all(after <= 2 * before for before, after in pairwise(sizes) if after > before)


def test_a_batch_that_does_not_pay_is_left_again() -> None:
    """Twice the rows for twice the seconds draws none earlier: tried, then one at a time."""
    sizes = largest(engine_with(lambda rows: 0.1 * rows**1.2), [single(num_images=40)])
    assert max(sizes) == 2
    assert set(sizes[-100:]) == {1}


def test_a_batch_grows_up_to_the_knee_and_not_beyond() -> None:
    """Flat up to eight rows, steep behind."""
    engine = engine_with(lambda rows: 0.1 if rows <= 8 else 0.1 * (rows - 7))
    sizes = largest(engine, [single(num_images=90), single(num_images=90)])
    assert max(sizes[-100:]) == 8


def test_one_slow_tick_does_not_decide() -> None:
    """A machine hiccup at the first batch of two is forgotten."""
    hiccups = iter([5.0])
    sizes = largest(engine_with(lambda rows: next(hiccups, 0.1) if rows == 4 else 0.1), [job(num_images=40)])
    assert max(sizes) == 16


def test_a_given_cap_is_obeyed_from_the_first_tick() -> None:
    """Whoever names rows knows why: nothing is learned."""
    assert largest(engine_with(lambda rows: 0.1 * rows, max_batch_rows=4), [single(num_images=8)]) == [4] * 20


def test_only_the_latest_kinds_of_samples_are_remembered() -> None:
    """Sizes come and go; what is learned of them does not grow for ever."""
    engine = engine_with(lambda _: 0.1)
    sides = [64 + 8 * place for place in range(20)]
    for width in sides:
        largest(engine, [single(width=width, height=height) for height in sides])
    costs: Any = engine.caps._costs
    assert len(costs) == KINDS
    assert list(costs)[-1] == ("m", sides[-1] // 8, sides[-1] // 8)


def test_without_memory_the_batch_is_halved_and_no_sample_is_lost() -> None:
    """What does not fit waits, from where it was; the pictures are the same as with all the memory."""
    area = 64 * 64
    ledger = ByteLedger(limit=3 * area)
    tight, wide = (engine_with(lambda _: 0.1, ledger=each, max_batch_rows=8) for each in (ledger, None))
    pictures = []
    for engine in (tight, wide):
        engine.submit(single(num_images=9), "a")
        events: list[Event] = list(engine.run())
        pictures.append({e.index: e.value.pixels for e in events if e.kind == "image"})
        progress = [(e.index, e.value[0]) for e in events if e.kind == "progress"]
        assert sorted(progress) == [(index, step) for index in range(9) for step in range(1, 11)]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 9
    sizes = [tick["samples"] for tick in tight.stats()["ticks"]]
    assert (max(sizes), ledger.refused) == (2, 2)
    assert max(tick["samples"] for tick in wide.stats()["ticks"]) == 8


def test_memory_that_was_measured_bounds_a_batch_before_it_is_short() -> None:
    """Two peaks tell what a row takes."""
    ledger = ByteLedger(limit=7 * 64 * 64)
    sizes = largest(engine_with(lambda _: 0.1, ledger=ledger), [single(num_images=30)])
    assert (max(sizes), ledger.refused) == (6, 0)


def test_a_picture_that_does_not_fit_alone_fails_and_others_do_not() -> None:
    """With a code and what to change."""
    engine = engine_with(lambda _: 0.1, ledger=ByteLedger(limit=5 * 64 * 64))
    engine.submit(single(), "small")
    engine.submit(single(width=256, height=256), "large")
    events = list(engine.run())
    failed = {e.job_id: e.value for e in events if e.kind == "failed"}
    assert [e.job_id for e in events if e.kind == "image"] == ["small"]
    assert (failed["large"].code, "smaller" in failed["large"].message) == ("out_of_memory", True)


def test_a_device_without_memory_is_told_from_other_errors() -> None:
    """Torch's own error derives from RuntimeError; other RuntimeErrors are ours to fix."""
    import torch

    assert ran_out(torch.cuda.OutOfMemoryError())
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("shapes"))
    engine = engine_with(lambda _: 1 / 0)
    engine.submit(single())
    with pytest.raises(ZeroDivisionError):
        list(engine.run())
    assert not ran_out(EngineError("internal", "x"))
