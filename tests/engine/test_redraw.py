"""After the death of the engine's process: what it held is drawn on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from streamapp.engine import Engine, EngineProcess, Event
from streamapp.engine.families.fake import CRASH, SLOW
from tests.engine.test_engine import collect, job, wait_for


@contextmanager
def process(**options: Any) -> Iterator[EngineProcess]:
    """A process host with a fake checkpoint."""
    engine = EngineProcess(**options)
    engine.start()
    try:
        engine.load("m", "somewhere", "fake")
        yield engine
    finally:
        engine.close()


def until_step(engine: EngineProcess, step: int) -> list[Event]:
    """Events until a sample is that far."""
    events: list[Event] = []

    def there() -> bool:
        events.extend(engine.step(0.1))
        return any(event.value >= (step, 0) for event in events)

    wait_for(there)
    return events


def test_a_killed_process_draws_on_from_the_last_state() -> None:
    """Not from the start, and only what was not finished; the picture is what it would have been."""
    wanted = job(prompt=SLOW, num_inference_steps=12, seed=5)
    alone = Engine()
    alone.load("m", "somewhere", "fake")
    alone.submit(wanted)
    expected = next(event.value.pixels for event in alone.run() if event.kind == "image")
    with process(keep_every=0.01) as engine:
        engine.submit(wanted, "a")
        until_step(engine, 4)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        wait_for(lambda: engine.restarts == 1)
        before = max(e.value[0] for e in engine.step() or [Event("a", 0, "progress", (4, 12))])
        events = collect(engine, 1)
        assert events[-1].value.pixels == expected
        first = events[0].value[0]
        assert 1 < first <= before + 1
        assert list(engine.run()) == []


def test_what_came_after_the_death_waits_for_the_next_process() -> None:
    """Nothing fails because it was submitted at the wrong moment."""
    with process() as engine:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        wait_for(lambda: engine.state == "restarting")
        engine.submit(job(num_images=2), "a")
        assert sorted(e.index for e in collect(engine, 2) if e.kind == "image") == [0, 1]


def test_a_job_that_kills_every_process_is_given_up_alone() -> None:
    """Its neighbours die with it twice, then they are drawn without it."""
    with process(keep_every=0.0) as engine:
        engine.submit(job(prompt=f"{SLOW} fine", num_inference_steps=30), "fine")
        engine.submit(job(prompt=CRASH, num_inference_steps=4), "pill")
        ends = {e.job_id: getattr(e.value, "code", e.kind) for e in collect(engine, 2) if e.kind in {"image", "failed"}}
        assert ends == {"fine": "image", "pill": "engine_crashed"}
        assert engine.restarts == 3
