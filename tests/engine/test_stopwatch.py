"""A tick says how much of it was the denoiser's forward."""

from __future__ import annotations

import torch

from streamapp.engine import Engine, Job
from streamapp.engine.stopwatch import Stopwatch
from tests.engine.test_exact import POCKET


def test_a_tick_holds_its_forward() -> None:
    engine = Engine(max_batch_rows=4)
    engine.load("m", POCKET)
    engine.submit(Job(model="m", prompt="a frog", width=64, height=64, num_inference_steps=3))
    list(engine.run())
    ticks = engine.stats()["ticks"]
    engine.close()
    assert len(ticks) == 3
    assert all(0 < tick["forward_s"] < tick["wall_s"] for tick in ticks)


def test_forwards_add_up_until_they_are_read() -> None:
    module = torch.nn.Linear(4, 4)
    watch = Stopwatch(module, "cpu")
    assert watch.seconds() == 0
    module(torch.zeros(1, 4))
    one = watch.seconds()
    assert one > 0
    assert watch.seconds() == 0


def test_the_fake_family_tells_what_it_pretends() -> None:
    slept: list[float] = []
    engine = Engine(options={"tick_s": 0.25, "sleep": slept.append}, max_batch_rows=2)
    engine.load("m", "x", "fake")
    engine.submit(Job(model="m", num_inference_steps=2))
    list(engine.run())
    assert slept == [0.25, 0.25]
    assert [tick["forward_s"] for tick in engine.stats()["ticks"]] == [0.25, 0.25]
