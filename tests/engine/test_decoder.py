"""Pictures are made beside the ticks: what that changes, and what it does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamapp.engine import Engine, EngineError, EngineProcess, Event
from streamapp.engine.decoding import IN_TILES
from streamapp.engine.families.fake import UNDECODABLE
from streamapp.engine.host import EngineThread
from streamapp.engine.memory import ByteLedger
from tests.engine import tiny, tiny_qwen
from tests.engine.test_engine import OVER, collect, job, wait_for

WITHIN = 30.0
AREA = 64 * 64


class Gate:
    """A decode that lasts until it is let through; ``begun`` counts those that came so far."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._let = 0
        self.begun = 0

    def sleep(self, _: float) -> None:
        """What the fake family spends its seconds with."""
        with self._changed:
            self.begun += 1
            mine = self.begun
            assert self._changed.wait_for(lambda: mine <= self._let, WITHIN), "never let through"

    def let(self, count: int = 1000) -> None:
        """Let this many more through."""
        with self._changed:
            self._let += count
            self._changed.notify_all()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Opened at the end, so that no thread stays behind it."""
    made = Gate()
    yield made
    made.let()


def gated(gate: Gate, **given: Any) -> Engine:
    """An engine whose decodes wait at the gate."""
    engine = Engine(options={"decode_s": 1.0, "sleep": gate.sleep}, **given)
    engine.load("m", "somewhere", "fake")
    return engine


def ends(events: list[Event]) -> list[tuple[str, int, str]]:
    """Who came to which end, in order."""
    return [(event.job_id, event.index, event.kind) for event in events if event.kind in OVER]


def test_the_next_batch_is_denoised_while_a_picture_is_decoded(gate: Gate) -> None:
    """The first picture is held back until the second job has all its steps."""
    engine = gated(gate)
    engine.submit(job(num_inference_steps=1), "first")
    events = engine.step()
    wait_for(lambda: gate.begun == 1)
    engine.submit(job(num_inference_steps=5), "second")
    for _ in range(5):
        events += engine.step()
    assert [(e.job_id, e.value) for e in events] == [("first", (1, 1)), *(("second", (s, 5)) for s in range(1, 6))]
    assert engine.stats()["decoding"] == 2
    gate.let()
    assert ends(list(engine.run())) == [("first", 0, "image"), ("second", 0, "image")]
    assert engine.idle
    assert engine.stats()["decoding"] == 0


def test_a_full_queue_holds_back_joins_and_not_running_samples(gate: Gate) -> None:
    """Two wait for their pictures: nobody joins, whoever runs comes to the end of its steps."""
    engine = gated(gate, decode_queue=2)
    engine.submit(job(num_inference_steps=1, num_images=2), "short")
    engine.submit(job(num_inference_steps=3), "long")
    for _ in range(3):  # the rows of a batch double
        engine.step()
    engine.submit(job(num_inference_steps=2), "late")
    steps: list[Any] = []
    for _ in range(10):
        if engine.resting:
            break
        steps += [(e.job_id, e.value) for e in engine.step()]
    assert ("long", (3, 3)) in steps
    assert not [each for each in steps if each[0] == "late"]
    assert (engine.stats()["decoding"], engine.stats()["waiting"], engine.stats()["running"]) == (3, 1, 0)
    gate.let()
    assert sorted(ends(list(engine.run()))) == [
        ("late", 0, "image"),
        ("long", 0, "image"),
        ("short", 0, "image"),
        ("short", 1, "image"),
    ]


def test_a_picture_that_cannot_be_decoded_fails_alone() -> None:
    """With a code; the other image of its job and its neighbours are drawn."""
    engine = Engine()
    engine.load("m", "somewhere", "fake")
    engine.submit(job(prompt=UNDECODABLE), "bad")
    engine.submit(job(), "good")
    events = list(engine.run())
    assert sorted(ends(events)) == [("bad", 0, "failed"), ("good", 0, "image")]
    (failed,) = [event.value for event in events if event.kind == "failed"]
    assert (failed.code, "does not want to" in failed.message) == ("decode_failed", True)


def test_a_lost_device_is_not_one_pictures_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process host needs the process to end then: the step raises."""
    engine = Engine()
    engine.load("m", "somewhere", "fake")

    def decode(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine._checkpoints["m"], "decode", decode)
    engine.submit(job())
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(engine.run())
    engine.close()


def test_what_does_not_fit_whole_is_decoded_in_tiles_and_what_does_not_fit_so_fails() -> None:
    """Nothing else is lost, whatever else takes memory meanwhile."""
    failures = {}
    for limit, expected in ((8, "image"), (3, "failed")):
        ledger = ByteLedger(limit=limit * AREA)
        engine = Engine(options={"ledger": ledger, "decode_bytes": 16})
        engine.load("m", "somewhere", "fake")
        engine.submit(job(guidance_scale=1), "a")
        events = list(engine.run())
        assert ends(events) == [("a", 0, expected)]
        failures[limit] = (events[-1].value, ledger.refused, ledger.held)
    assert failures[8][1:] == (1, 0)
    assert failures[3][1:] == (2, 0)
    assert failures[3][0].code == "out_of_memory"


def test_a_batch_that_is_short_of_memory_waits_for_decodes_before_it_is_halved(gate: Gate) -> None:
    """What a picture takes comes back in a moment; the cap would stay low for long."""
    ledger = ByteLedger(limit=10 * AREA)
    options = {"ledger": ledger, "decode_bytes": 4, "decode_s": 1.0, "sleep": gate.sleep}
    engine = Engine(max_batch_rows=8, options=options)
    engine.load("m", "somewhere", "fake")
    engine.submit(job(num_inference_steps=1), "first")
    engine.step()
    wait_for(lambda: gate.begun == 1)
    engine.submit(job(num_images=4, num_inference_steps=1), "second")
    threading.Timer(0.2, gate.let).start()
    list(engine.run())
    assert [tick["rows"] for tick in engine.stats()["ticks"]] == [2, 8]


def test_samples_can_be_cancelled_while_they_wait_for_their_picture_and_in_it(gate: Gate) -> None:
    """Each has one end, wherever it is."""
    engine = gated(gate, max_batch_rows=8)
    engine.submit(job(num_inference_steps=1, num_images=4), "a")
    engine.step()
    wait_for(lambda: gate.begun == 1)
    engine.cancel("a", 0)
    engine.cancel("a", 2)
    gate.let()
    events = list(engine.run())
    assert sorted(ends(events)) == [(("a"), i, kind) for i, kind in enumerate(["cancelled", "image"] * 2)]


def test_a_sample_that_waits_for_its_picture_can_be_parked_and_one_that_is_decoded_cannot(gate: Gate) -> None:
    """Resumed it goes straight to its decoding."""
    engine, other = gated(gate), Engine()
    other.load("m", "somewhere", "fake")
    engine.submit(job(num_inference_steps=1, num_images=2), "a")
    for _ in range(2):
        engine.step()
    wait_for(lambda: gate.begun == 1)
    with pytest.raises(EngineError) as caught:
        engine.park("a", 0)
    assert caught.value.code == "unknown_sample"
    other.resume(engine.park("a", 1))
    assert ends(list(other.run())) == [("a", 1, "image")]
    gate.let()
    assert ends(list(engine.run())) == [("a", 0, "image")]


def test_a_checkpoint_is_in_use_until_its_last_picture_is_made(gate: Gate) -> None:
    """Nobody decodes with weights that are gone; close waits for the picture that is being decoded."""
    engine = gated(gate)
    engine.submit(job(num_inference_steps=1))
    engine.step()
    with pytest.raises(EngineError, match="in use"):
        engine.unload("m")
    wait_for(lambda: gate.begun == 1)
    threading.Timer(0.1, gate.let).start()
    engine.close()
    assert engine.idle
    assert engine.stats()["checkpoints"] == {}


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_hosts_take_calls_while_they_wait_for_a_picture(gate: Gate, kind: str) -> None:
    """A submit is drawn at once, not after the decode."""
    in_thread, apart = {"decode_s": 1.0, "sleep": gate.sleep}, {"decode_s": 1.5}
    host: Any = EngineThread(options=in_thread) if kind == "thread" else EngineProcess(options=apart)
    host.start()
    try:
        host.load("m", "somewhere", "fake")
        seen: list[tuple[str, str]] = []
        for name in ("a", "b"):
            host.submit(job(num_inference_steps=1), name)
            while (name, "progress") not in seen:
                seen += [(event.job_id, event.kind) for event in host.step(0.1)]
        gate.let()
        seen += [(event.job_id, event.kind) for event in collect(host, 2)]
        assert seen == [("a", "progress"), ("b", "progress"), ("a", "image"), ("b", "image")]
    finally:
        gate.let()
        host.close()


def test_a_decode_that_hangs_is_noticed() -> None:
    """The child looks idle otherwise, as nothing ticks."""
    host = EngineProcess(hung_after=3.0, attempts=1, options={"decode_s": 3600.0})
    host.start()
    try:
        host.load("m", "somewhere", "fake")
        host.submit(job(num_inference_steps=1), "a")
        (end,) = [e for e in collect(host, 1) if e.kind in OVER]
        assert end.value.code == "engine_crashed"
    finally:
        host.close()


@pytest.mark.parametrize(("family", "save"), [("sd15", tiny.sd), ("qwen_image", tiny_qwen.qwen_image)])
def test_pictures_are_the_same_beside_ticks_and_between_them(tmp_path: Path, family: str, save: Any) -> None:
    """Bit for bit, with neighbours that are denoised meanwhile; above a size they come in tiles, which is said."""
    save(tmp_path)
    drawn = []
    for queue in (0, 32):
        engine = Engine(max_batch_rows=4, decode_queue=queue)
        engine.load("m", tmp_path, family)
        for steps in (2, 3, 4, 5):
            given = {"prompt": "a", "num_inference_steps": steps, "guidance_scale": 2.0}
            engine.submit(job(**given), str(steps))
        drawn.append({e.job_id: e.value.pixels for e in engine.run() if e.kind == "image"})
        engine.close()
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 4


def test_large_pictures_are_decoded_in_tiles_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same but for the seams; a picture below the size is whole."""
    tiny.sd(tmp_path)
    engine = Engine()
    engine.load("m", tmp_path, "sd15")
    pictures = []
    for most in (128 * 128, 128 * 128 - 1):
        monkeypatch.setattr("streamapp.engine.pictures.WHOLE", most)
        engine.submit(job(prompt="a", width=128, height=128, num_inference_steps=2))
        pictures.append(next(e.value for e in engine.run() if e.kind == "image"))
    whole, tiled = pictures
    assert (whole.info["notes"], tiled.info["notes"]) == ((), (IN_TILES,))
    assert whole.pixels != tiled.pixels
    assert (tiled.width, tiled.height, len(tiled.pixels)) == (128, 128, len(whole.pixels))
    apart = sum(abs(a - b) for a, b in zip(whole.pixels, tiled.pixels, strict=True)) / len(whole.pixels)
    assert apart < 20
    engine.close()
