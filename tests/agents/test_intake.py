"""Task topics into the Backlog: one event at a time, with a consumer that notes what it is told."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import faust.types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import intake
from streamapp.broker.record import TP
from streamapp.records import DeadLetter
from streamapp.settings import Settings
from streamapp.worker.backlog import Backlog, Receipt
from tests.worker.support import message


class FakeApp:
    """As much of the application as the intake touches."""

    def __init__(self, lookahead: int = 100) -> None:
        self.settings = Settings(worker_id="w")
        self.letters: list[DeadLetter] = []
        self.held: list[Any] = []
        self.acked: list[int] = []
        self.consumer = SimpleNamespace(on_buffer_full=self.held.append)
        backlog = Backlog(lookahead)

        def receive(task: Any, receipt: Receipt, now: float) -> None:
            backlog.add(task, receipt, now)

        self.backlog = backlog
        worker = SimpleNamespace(backlog=backlog, receive=receive)
        self.runtime = SimpleNamespace(worker=worker, clock=SimpleNamespace(now=lambda: 5))

    async def dead_letter(self, letter: DeadLetter) -> None:
        self.letters.append(letter)

    def event(self, value: bytes | None, offset: int = 0, topic: str = "sd15_tasks") -> Any:
        place = SimpleNamespace(topic=topic, partition=1, offset=offset, tp=faust.types.TP(topic, 1))
        return SimpleNamespace(value=value, message=place, ack=lambda: self.acked.append(offset))


async def test_a_task_goes_into_the_backlog_and_is_not_acked() -> None:
    app = FakeApp()
    await intake.receive(app, app.event(message("t1").encode()))
    assert app.backlog.get("t1") is not None
    assert app.acked == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"\x00\xff", "malformed"),
        (b'{"kind": "worker_status", "v": 1}', "foreign"),
        (b'{"kind": "task", "v": 2}', "version"),
        (b'{"kind": "task", "v": 1}', "fields"),
        (b'"' + b"x" * 70_000 + b'"', "too_large"),
        (message("t", family="flux").encode(), "foreign"),
    ],
)
async def test_what_cannot_be_read_goes_to_the_dead_letters_and_off_the_topic(value: bytes | None, reason: str) -> None:
    app = FakeApp()
    await intake.receive(app, app.event(value, offset=7))
    assert [(letter.reason, letter.topic, letter.partition, letter.offset) for letter in app.letters] == [
        (reason, "sd15_tasks", 1, 7)
    ]
    assert app.letters[0].size == (None if value is None else len(value))
    raw = app.letters[0].raw
    assert (None if raw is None else base64.b64decode(raw)) == value, "the bytes are kept as they came"
    assert app.acked == [7]
    assert len(app.backlog) == 0


async def test_of_a_huge_message_a_letter_keeps_what_fits_into_a_record() -> None:
    app = FakeApp()
    await intake.receive(app, app.event(b"x" * 5_000_000))
    assert app.letters[0].size == 5_000_000
    assert len(app.letters[0].encode()) < 1_000_000


@given(st.binary(max_size=300) | st.none())
async def test_no_bytes_at_all_stop_the_intake(value: bytes | None) -> None:
    app = FakeApp()
    await intake.receive(app, app.event(value))
    assert len(app.letters) == 1
    assert app.acked == [0]


async def test_above_the_mark_every_event_tells_the_consumer_to_hold_its_partition() -> None:
    app = FakeApp(lookahead=3)
    for number in range(5):
        await intake.receive(app, app.event(message(f"t{number}").encode(), number))
    assert app.held == [TP("sd15_tasks", 1)] * 3
    assert all(isinstance(tp, faust.types.TP) for tp in app.held)
    await intake.receive(app, app.event(message("now", priority=0).encode(), 9, "sd15_tasks_urgent"))
    assert len(app.held) == 3


@pytest.mark.parametrize(("width", "height"), [(0, 128), (128, -8), (2**40, 8)])
async def test_a_size_that_no_engine_may_be_asked_about_is_a_dead_letter(width: int, height: int) -> None:
    app, task = FakeApp(), message("t1")
    drawn = task.params.drawn.model_copy(update={"width": width, "height": height})
    wrong = task.model_copy(update={"params": task.params.model_copy(update={"drawn": drawn})})
    await intake.receive(app, app.event(wrong.encode()))
    assert [letter.reason for letter in app.letters] == ["fields"]
