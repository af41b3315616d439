"""Which partition a new task goes to."""

from __future__ import annotations

from collections import Counter

import pytest

from streamapp.generation import LoraRef
from streamapp.records import ModelLoad, WorkerStatus
from streamapp.scheduling.cost import Rates, estimate, work
from streamapp.scheduling.router import Router
from tests.worker.support import message, params

TOPIC = "sd15_tasks"


def status(worker_id: str, owned: tuple[int, ...], seconds: float = 0.0, **given: object) -> WorkerStatus:
    base: dict[str, object] = {
        "worker_id": worker_id, "host": "h", "pid": 1, "port": 1, "role": "worker", "families": ("sd15",),
        "device": "cpu", "engine": "ready", "state": "running", "started_at": 0, "at": 1, "partitions": {TOPIC: owned},
        "backlog": {"pocket": ModelLoad(jobs=1, seconds=seconds)}, "checkpoints": {"pocket": "vram"},
    }  # fmt: skip
    return WorkerStatus.model_validate(base | given)


def test_without_known_workers_tasks_spread_by_hash_and_stay_in_range() -> None:
    router = Router(4)
    chosen = {router.partition(TOPIC, message(f"t{n}"), []) for n in range(100)}
    assert chosen == {0, 1, 2, 3}
    assert Router(4).partition(TOPIC, message("t1"), []) == router.partition(TOPIC, message("t1"), [])


def test_the_owner_that_finishes_first_gets_the_task() -> None:
    statuses = [status("busy", (0, 1), 50.0), status("idle", (2, 3), 1.0)]
    assert Router(4).partition(TOPIC, message("t"), statuses) in {2, 3}


def test_a_burst_is_spread_by_what_was_sent_since_the_last_status() -> None:
    router, statuses = Router(4), [status("a", (0, 1)), status("b", (2, 3))]
    counts = Counter(router.partition(TOPIC, message(f"t{n}"), statuses) for n in range(40))
    assert counts == {0: 10, 1: 10, 2: 10, 3: 10}


def test_a_worker_that_holds_the_checkpoint_is_preferred_until_its_queue_costs_more_than_the_switch() -> None:
    there = status("there", (0,), 3.0, checkpoints={"pocket": "vram"})
    cold = status("cold", (1,), 0.0, checkpoints={"other": "vram", "pocket": "disk"}, backlog={})
    assert Router(2).partition(TOPIC, message("t"), [there, cold]) == 0
    crowded = status("there", (0,), 30.0, checkpoints={"pocket": "vram"})
    assert Router(2).partition(TOPIC, message("t"), [crowded, cold]) == 1


def test_a_worker_that_holds_the_lora_is_preferred() -> None:
    without, having = status("a", (0,)), status("b", (1,), loras={"ink": "vram"})
    task = message("t", loras=(LoraRef(name="ink"),))
    assert Router(2).partition(TOPIC, task, [without, having]) == 1


def test_workers_that_leave_or_have_no_engine_get_nothing_while_another_can() -> None:
    leaving = status("a", (0,), state="draining")
    broken = status("b", (1,), engine="failed")
    fine = status("c", (2,), 100.0)
    assert Router(3).partition(TOPIC, message("t"), [leaving, broken, fine]) == 2


def test_cost_grows_with_pixels_steps_images_and_guidance() -> None:
    base = estimate(params())
    assert estimate(params(steps=8)) > 1.4 * base
    assert estimate(params(n=4)) > 3.9 * base
    assert estimate(params(guidance=1.0)) < base
    assert work(params(n=2)) == 2 * work(params())


def test_measured_rates_replace_the_first_guess() -> None:
    rates = Rates()
    assert rates.switch("pocket", 2.0) == 2.0
    rates.loaded("pocket", 8.0)
    rates.loaded("pocket", 3.0)
    assert rates.switch("pocket") == 7.0
    assert rates.factor("pocket") == 1.0
    rates.drawn(params(), 10.0)
    assert rates.factor("pocket") * (estimate(params()) - 0.05) == pytest.approx(10.0, rel=0.01)
    assert estimate(params(), rates.by_model) == round(10.0 + 0.05, 4)
