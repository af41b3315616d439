"""How many samples a worker may hand to its engine."""

from __future__ import annotations

from typing import Any

from streamapp.engine import Event, Job
from streamapp.engine.aio import AsyncEngine
from streamapp.engine.memory import ByteLedger
from tests.engine.test_caps import engine_with, largest, single
from tests.engine.test_engine import job


class Host:
    """What an engine elsewhere has told."""

    state = "ready"

    def __init__(self, **stats: Any) -> None:
        self.told = stats

    def submit(self, job: Job, job_id: str) -> str:
        """Taken."""
        del job
        return job_id

    def stats(self) -> dict[str, Any]:
        """As told."""
        return self.told


async def heard(engine: AsyncEngine, *events: Event) -> None:
    """Events reach the event loop."""
    engine._inbox.put_nowait(list(events))
    await engine.events()


def learned(batches: list[dict[str, Any]]) -> list[tuple[Any, int]]:
    """Sizes and samples."""
    return [(each["size"], each["samples"]) for each in batches]


def test_an_engine_tells_what_it_learned_of_batches() -> None:
    """Where they do not pay, one sample; while they grow and where they pay, the most; less where memory is short."""
    slow = engine_with(lambda rows: 0.1 * rows**1.2)
    largest(slow, [single(width=1024, height=1024, num_images=12)])
    assert learned(slow.stats()["batches"]) == [((1024, 1024), 1)]
    quick = engine_with(lambda _: 0.1)
    largest(quick, [single(num_images=1)])
    assert learned(quick.stats()["batches"]) == [((64, 64), 32)]
    largest(quick, [single(num_images=40)])
    assert learned(quick.stats()["batches"]) == [((64, 64), 32)]
    tight = engine_with(lambda _: 0.1, ledger=ByteLedger(limit=7 * 64 * 64))
    largest(tight, [single(num_images=30)])
    assert learned(tight.stats()["batches"]) == [((64, 64), 6)]


async def test_a_worker_hands_over_what_is_drawn_at_once_and_no_more() -> None:
    """What was learned of this size counts, of the model that takes most; other sizes have their default."""
    told = [
        {"model": "a", "size": (1024, 1024), "samples": 1},
        {"model": "b", "size": (1024, 1024), "samples": 3},
        {"model": "a", "size": (512, 512), "samples": 64},
    ]
    engine = AsyncEngine(Host(batches=told))  # type: ignore[arg-type]
    assert (engine.room(1024, 1024), engine.room(512, 512), engine.room(2048, 2048)) == (3, 16, 2)
    assert AsyncEngine(Host()).room(1024, 1024) == 8  # type: ignore[arg-type]
    engine.submit(job(num_images=2), "x")
    assert (engine.room(1024, 1024), engine.room(512, 512)) == (1, 14)


async def test_pictures_that_are_decoded_leave_room() -> None:
    """Their rows are free: the next samples come before the pictures do."""
    engine = AsyncEngine(Host())  # type: ignore[arg-type]
    engine.submit(job(num_images=2), "x")
    await heard(engine, Event("x", 0, "progress", (3, 4)))
    assert engine.room(512, 512) == 14
    await heard(engine, Event("x", 0, "progress", (4, 4)), Event("x", 1, "progress", (4, 4)))
    assert engine.room(512, 512) == 16
    await heard(engine, Event("x", 0, "image"))
    assert engine.room(512, 512) == 16
    await heard(engine, Event("x", -1, "failed"))
    assert (engine.room(512, 512), engine.unfinished) == (16, 0)
