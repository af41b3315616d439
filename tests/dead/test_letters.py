"""The list of what could not be worked off: written with the end it tells of, closed once by replay or drop."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka.errors import MessageSizeTooLargeError
from faust.exceptions import ProducerSendError

from streamapp.app import create_app
from streamapp.db import Claims, Database, DeadLetters, State, Tasks
from streamapp.errors import Unavailable
from streamapp.records import DeadLetter, decode
from streamapp.settings import Settings
from tests.db.support import claim, end, new, shift

CRASH = {"code": "engine_crashed", "message": "the engine died", "retryable": True, "reason": "failed 3 of 3 attempts"}
DAY = 86_400.0


def unreadable(offset: int = 7, **given: object) -> DeadLetter:
    facts: dict[str, object] = {
        "task_id": None, "topic": "sd15_tasks", "partition": 1, "offset": offset, "reason": "malformed",
        "message": "the message is not JSON", "at": 1_000 + offset, "raw": "AP8=", "size": 2,
    }  # fmt: skip
    return DeadLetter.model_validate(facts | given)


async def fail(tasks: Tasks, claims: Claims, *ids: str, user: str = "ana") -> None:
    for task_id in ids:
        await tasks.insert(new(task_id, user_id=user, deadline_ms=60_000))
    rows = await claim(claims, *ids)
    ends = [end(row, State.FAILED, error=CRASH) for row in rows]
    ends = [replace(one, event=one.event.model_copy(update={"user_id": user})) for one in ends]
    assert set((await claims.finish(ends)).values()) == {State.FAILED}


@pytest.fixture
def letters(database: Database) -> DeadLetters:
    return DeadLetters(database)


async def test_a_failed_task_has_a_letter_with_its_whole_history(
    tasks: Tasks, claims: Claims, letters: DeadLetters
) -> None:
    await tasks.insert(new("t1"))
    [row] = await claim(claims, "t1")
    assert await claims.retry("t1", row.claim_token or "", 0.0, CRASH)
    [row] = await claim(claims, "t1", worker="w2")
    await claims.finish([end(row, State.FAILED, error=CRASH)])
    [letter] = await letters.page()
    assert (letter.id, letter.task_id, letter.state, letter.user_id) == ("t1", "t1", "open", "ana")
    assert (letter.reason, letter.message, letter.attempts) == ("failed 3 of 3 attempts", "the engine died", 2)
    assert [(entry["attempt"], entry["worker_id"], entry["code"]) for entry in letter.history] == [
        (1, "w1", "engine_crashed"),
        (2, "w2", "engine_crashed"),
    ]


async def test_other_ends_have_none(tasks: Tasks, claims: Claims, letters: DeadLetters) -> None:
    await tasks.insert(new("t1"))
    await tasks.insert(new("t2"))
    await claims.finish([end(row) for row in await claim(claims, "t1")])
    await tasks.cancel("t2")
    assert await letters.page(state=None) == []


async def test_a_replay_keeps_the_id_counts_attempts_anew_and_closes_the_letter(
    tasks: Tasks, claims: Claims, letters: DeadLetters
) -> None:
    await fail(tasks, claims, "t1")
    assert await letters.replay(["t1", "nobody"]) == {"t1": "replayed", "nobody": "missing"}
    row = await tasks.get("t1")
    assert row is not None
    assert (row.state, row.attempts, row.error, row.ended_at) == (State.QUEUED, 0, None, None)
    assert [entry["code"] for entry in row.history] == ["engine_crashed", "replayed"]
    assert row.produce_at is not None
    assert await letters.page() == []
    [letter] = await letters.page(state="replayed")
    assert letter.id == "t1"
    assert await letters.replay(["t1"]) == {"t1": "already replayed"}


async def test_a_replayed_task_that_fails_again_is_open_again(
    tasks: Tasks, claims: Claims, letters: DeadLetters
) -> None:
    await fail(tasks, claims, "t1")
    await letters.replay(["t1"])
    await claims.finish([end(row, State.FAILED, error=CRASH) for row in await claim(claims, "t1")])
    [letter] = await letters.page()
    assert [entry["code"] for entry in letter.history] == ["engine_crashed", "replayed", "engine_crashed"]


async def test_every_replay_gives_the_same_time_to_the_deadline(
    database: Database, tasks: Tasks, claims: Claims
) -> None:
    await fail(tasks, claims, "t1")
    await shift(database, "t1", submitted_at=-1_000_000, deadline_at=-1_000_000)
    for _ in range(2):
        assert await tasks.replay("t1")
        row = await tasks.get("t1")
        assert row is not None
        assert row.deadline_at == row.history[-1]["at"] + 60_000
        await claims.finish([end(row, State.FAILED, error=CRASH) for row in await claim(claims, "t1")])


async def test_a_dropped_letter_stays_dropped_and_the_row_says_so(
    tasks: Tasks, claims: Claims, letters: DeadLetters
) -> None:
    await fail(tasks, claims, "t1")
    assert await letters.drop(["t1", "nobody"]) == {"t1": "dropped", "nobody": "missing"}
    assert await letters.drop(["t1"]) == {"t1": "already dropped"}
    assert await letters.replay(["t1"]) == {"t1": "already dropped"}
    row = await tasks.get("t1")
    assert row is not None
    assert row.state is State.FAILED
    assert [entry["code"] for entry in row.history] == ["dropped"]
    assert (await letters.counts()) == {"dropped": 1}


async def test_of_a_replay_and_a_drop_at_once_exactly_one_wins(
    tasks: Tasks, claims: Claims, letters: DeadLetters
) -> None:
    ids = [f"t{number}" for number in range(8)]
    await fail(tasks, claims, *ids)
    answers = await asyncio.gather(*(act([task_id]) for task_id in ids for act in (letters.replay, letters.drop)))
    for task_id, replayed, dropped in zip(ids, answers[::2], answers[1::2], strict=True):
        assert (replayed[task_id], dropped[task_id]) in {
            ("replayed", "already replayed"),
            ("already dropped", "dropped"),
        }
        row = await tasks.get(task_id)
        assert row is not None
        assert row.state is (State.QUEUED if replayed[task_id] == "replayed" else State.FAILED)


async def test_unreadable_messages_are_listed_with_their_bytes_once(letters: DeadLetters) -> None:
    assert await letters.keep(unreadable(), DAY)
    assert not await letters.keep(unreadable(), DAY)
    [letter] = await letters.page()
    assert (letter.id, letter.task_id, letter.raw, letter.size) == ("sd15_tasks:1:7", None, "AP8=", 2)
    assert (letter.topic, letter.partition, letter.offset) == ("sd15_tasks", 1, 7)
    assert (letter.reason, letter.message) == ("malformed", "the message is not JSON")
    assert await letters.replay([letter.id]) == {letter.id: "unreadable"}
    assert await letters.drop([letter.id]) == {letter.id: "dropped"}
    assert not await letters.keep(unreadable(), DAY), "delivered again, it does not open again"
    assert await letters.page() == []


async def test_unreadable_messages_go_after_their_time(letters: DeadLetters) -> None:
    assert await letters.keep(unreadable(1), DAY)
    assert await letters.keep(unreadable(64, at=2**41), DAY)
    assert [letter.offset for letter in await letters.page()] == [64]


async def test_users_see_their_own_and_pages_go_on_where_the_last_one_ended(
    tasks: Tasks, claims: Claims, letters: DeadLetters
) -> None:
    await fail(tasks, claims, "t1", "t2", "t3")
    await fail(tasks, claims, "b1", user="bob")
    await letters.keep(unreadable(), DAY)
    assert [letter.id for letter in await letters.page("bob")] == ["b1"]
    assert await letters.get("t1", "bob") is None
    assert await letters.drop(["t1"], "bob") == {"t1": "missing"}
    assert await letters.replay(["t1"], "bob") == {"t1": "missing"}
    first = await letters.page(limit=2)
    rest = await letters.page(limit=9, before=first[-1].id)
    assert [letter.id for letter in [*first, *rest]] == [letter.id for letter in await letters.page()]
    assert len(first + rest) == 5


async def test_a_broker_that_takes_small_records_only_gets_the_letter_without_the_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = create_app(Settings(data_dir=tmp_path), "up")
    sent: list[DeadLetter] = []

    async def produce(topic: str, partition: int | None, key: bytes, value: bytes) -> tuple[int, int]:
        if len(value) > 1_000:
            try:
                raise ProducerSendError("not sent") from MessageSizeTooLargeError()
            except ProducerSendError as error:
                raise Unavailable("the broker did not take a record") from error
        sent.append(decode(DeadLetter, value))
        return 0, 0

    monkeypatch.setattr(app, "produce", produce)
    await asyncio.wait_for(app.dead_letter(unreadable(raw="A" * 4_000, size=3_000)), 5)
    assert [(letter.raw, letter.size) for letter in sent] == [(None, 3_000)]
