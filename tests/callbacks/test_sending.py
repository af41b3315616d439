"""A webhook reaches its receiver once or is tried for hours, whatever receiver, network and processes do."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from streamapp import callbacks as module
from streamapp.db import Callback, Claims, State, Tasks
from streamapp.errors import NotFound, Unavailable
from streamapp.guarded import Answer
from tests.callbacks.conftest import KEY, NOW, Desk, Receiver, until
from tests.db.support import claim, end, new, shift


def signed(key: bytes, event_id: str, timestamp: str, body: bytes) -> str:
    """As the specification says it, in other words than the code under test."""
    message = f"{event_id}.{timestamp}.{body.decode()}".encode()
    return "v1," + base64.standard_b64encode(hmac.digest(key, message, hashlib.sha256)).decode()


def test_the_published_example_of_the_specification() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    given = module.signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert given == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_the_function_of_the_document_verifies_what_arrives(
    desk: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    [code] = re.findall(r"```python\n(import base64.*?)```", document, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  our own document
    monkeypatch.setattr(names["time"], "time", lambda: NOW / 1000 + 5)
    await desk.due("t1", receiver.url("/hook"))
    await desk.once(await desk.sender(keys=(b"o" * 32, KEY)))
    [got] = receiver.got
    secret = "whsec_" + base64.b64encode(KEY).decode()
    assert names["verify"](secret, got.headers, got.body)
    assert not names["verify"](secret, got.headers, got.body + b" ")
    assert not names["verify"]("whsec_" + base64.b64encode(b"x" * 32).decode(), got.headers, got.body)
    monkeypatch.setattr(names["time"], "time", lambda: NOW / 1000 + 301)
    assert not names["verify"](secret, got.headers, got.body)


async def test_a_receiver_can_verify_with_either_secret(desk: Desk, receiver: Receiver) -> None:
    other = b"o" * 24
    event = await desk.due("t1", receiver.url("/hook?x=1"))
    assert await desk.once(await desk.sender(keys=(KEY, other))) == 1
    [got] = receiver.got
    assert (got.path, got.body, got.headers["content-type"]) == ("/hook", b'{"task":"t1"}', "application/json")
    assert (got.headers["webhook-id"], got.headers["webhook-timestamp"]) == (event, str(NOW // 1000))
    expected = [signed(key, event, got.headers["webhook-timestamp"], got.body) for key in (KEY, other)]
    assert got.headers["webhook-signature"].split(" ") == expected
    state = await desk.state(event)
    assert (state.attempts, state.next_at, state.error) == (1, None, None)
    assert state.ended_at is not None
    assert await desk.once(await desk.sender()) == 0
    assert desk.counts == {"callbacks_delivered": 1}


async def test_failures_are_tried_again_with_growing_pauses_and_the_same_id(desk: Desk, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [500, 404, 302, 200]
    event = await desk.due("t1", receiver.url("/hook"))
    sender = await desk.sender()
    for attempt, pause in enumerate((5, 20, 80), start=1):
        before = await desk.database.now()
        assert await desk.once(sender) == 1
        state = await desk.state(event)
        assert state.next_at is not None
        after = await desk.database.now()
        assert before + pause * 1000 <= state.next_at <= after + pause * 1000
        assert (state.attempts, state.ended_at) == (attempt, None)
        await desk.pass_time(pause - (after - before) / 1000 - 1)
        assert await desk.once(sender) == 0, "not before its time"
        await desk.pass_time(1 + (after - before) / 1000)
    assert await desk.once(sender) == 1
    assert receiver.ids() == [event] * 4
    assert (await desk.state(event)).error is None
    assert desk.counts == {"callbacks_delayed": 3, "callbacks_delivered": 1}


async def test_a_redirect_is_a_failure_and_is_not_followed(desk: Desk, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [{"status": 307, "headers": {"location": "/elsewhere"}}]
    event = await desk.due("t1", receiver.url("/hook"))
    await desk.once(await desk.sender())
    assert [got.path for got in receiver.got] == ["/hook"]
    assert (await desk.state(event)).error == "the receiver answered 307"


async def test_the_last_attempt_gives_up_and_says_why(desk: Desk, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [503]
    event = await desk.due("t1", receiver.url("/hook"))
    sender = await desk.sender(webhook_attempts=2)
    await desk.once(sender)
    await desk.pass_time(5)
    await desk.once(sender)
    state = await desk.state(event)
    assert (state.attempts, state.next_at, state.error) == (2, None, "the receiver answered 503")
    assert state.ended_at is not None
    assert desk.counts == {"callbacks_delayed": 1, "callbacks_failed": 1}


async def test_gone_ends_it_at_once(desk: Desk, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [410]
    event = await desk.due("t1", receiver.url("/hook"))
    await desk.once(await desk.sender())
    state = await desk.state(event)
    assert (state.attempts, state.next_at, state.error) == (1, None, "the receiver answered 410")


async def test_retry_after_delays_but_never_hastens(desk: Desk, receiver: Receiver) -> None:
    wishes = {"/late": ("600", 600), "/soon": ("1", 5), "/never": ("99999999", 4 * 3600), "/odd": ("Mon, 1 Jan", 5)}
    for path, (wish, _) in wishes.items():
        receiver.answers[path] = [{"status": 429, "headers": {"retry-after": wish}}]
        await desk.due(path[1:], receiver.url(path))
    before = await desk.database.now()
    assert await desk.once(await desk.sender()) == 4
    after = await desk.database.now()
    for path, (_, pause) in wishes.items():
        state = await desk.state(f"{path[1:]}:2")
        assert state.next_at is not None
        assert before + pause * 1000 <= state.next_at <= after + pause * 1000, path


def test_pauses_grow_to_four_hours_and_vary_by_a_fifth() -> None:
    def pause(attempt: int, vary: Any = lambda low, high: 1.0) -> float | None:
        return module.judge(Answer(500, {}, b""), attempt, 10, vary).after_s

    assert [pause(attempt) for attempt in range(1, 11)] == [5, 20, 80, 320, 1280, 5120, 14400, 14400, 14400, None]
    assert pause(1, lambda low, high: low) == pytest.approx(4)
    assert pause(1, lambda low, high: high) == pytest.approx(6)


async def test_nobody_listens(desk: Desk) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        event = await desk.due("t1", f"http://127.0.0.1:{port}/secret-path")
        await desk.once(await desk.sender())
    state = await desk.state(event)
    assert state.next_at is not None
    assert state.error is not None
    assert state.error.startswith("the receiver cannot be reached")
    assert "secret-path" not in state.error


async def test_no_answer_in_time(desk: Desk, receiver: Receiver) -> None:
    receiver.paused.clear()
    event = await desk.due("t1", receiver.url("/slow"))
    await desk.once(await desk.sender(webhook_timeout=0.2))
    state = await desk.state(event)
    assert (state.error, state.next_at is None) == ("the receiver did not answer in time", False)


async def test_an_endless_answer_is_not_read(desk: Desk, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [{"status": 200, "body": b"x" * 20_000_000}]
    event = await desk.due("t1", receiver.url("/hook"))
    await desk.once(await desk.sender(webhook_timeout=5))
    assert (await desk.state(event)).error is None


async def test_a_defect_of_ours_costs_attempts_and_ends(desk: Desk, receiver: Receiver) -> None:
    async def defect(call: Callback) -> bytes:
        raise KeyError("a defect")

    event = await desk.due("t1", receiver.url("/hook"))
    await desk.once(await desk.sender(render=defect, webhook_attempts=1))
    state = await desk.state(event)
    assert (state.attempts, state.next_at, state.error) == (1, None, "this service failed to send it")


async def test_two_senders_share_the_work_and_send_nothing_twice(desk: Desk, receiver: Receiver) -> None:
    events = [await desk.due(f"t{number:02}", receiver.url(f"/{number}")) for number in range(40)]
    senders = [await desk.sender() for _ in range(3)]

    async def all_of_it(sender: module.Callbacks) -> None:
        while await desk.delivery.next_callback_in() is not None:
            await desk.once(sender)
            await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await asyncio.gather(*(all_of_it(sender) for sender in senders))
    assert sorted(receiver.ids()) == sorted(events)


async def test_a_process_that_dies_while_it_sends_is_followed_by_another(desk: Desk, receiver: Receiver) -> None:
    """The claim fences: not before it ran out, with the same id, and who was late changes nothing."""
    receiver.paused.clear()
    event = await desk.due("t1", receiver.url("/slow"))
    dead = await desk.sender()
    assert await dead.turn() == 1
    await until(lambda: len(receiver.got) == 1)
    alive = await desk.sender()
    assert await alive.turn() == 0
    await desk.pass_time(5 + module.MARGIN)
    assert await alive.turn() == 1
    await until(lambda: len(receiver.got) == 2)
    receiver.paused.set()
    await asyncio.gather(dead.idle(), alive.idle())
    assert receiver.ids() == [event, event]
    state = await desk.state(event)
    assert (state.attempts, state.next_at, state.error) == (2, None, None)
    assert desk.counts == {"callbacks_delivered": 1}


async def test_a_late_failure_does_not_undo_a_delivery(desk: Desk, receiver: Receiver) -> None:
    event = await desk.due("t1", receiver.url("/hook"))
    [first] = await desk.delivery.due_callbacks(1, 0)
    await desk.once(await desk.sender())
    assert not await desk.delivery.delay_callback(event, 5, "late", attempt=first.attempts)
    assert not await desk.delivery.end_callback(event, "late", attempt=2)
    assert (await desk.state(event)).error is None


async def test_at_a_stop_what_is_under_way_ends_well(desk: Desk, receiver: Receiver) -> None:
    receiver.paused.clear()
    event = await desk.due("t1", receiver.url("/slow"))
    running = asyncio.create_task((await desk.sender()).run())
    await until(lambda: len(receiver.got) == 1)
    running.cancel()
    await asyncio.sleep(0)
    receiver.paused.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await desk.state(event)).ended_at is not None


async def test_what_this_service_cannot_do_costs_no_attempt(desk: Desk, receiver: Receiver) -> None:
    async def away(call: Callback) -> bytes:
        raise Unavailable("the storage does not answer")

    event = await desk.due("t1", receiver.url("/hook"))
    await desk.once(await desk.sender(render=away, webhook_attempts=1))
    state = await desk.state(event)
    assert (state.attempts, state.ended_at, receiver.got) == (0, None, [])
    await desk.pass_time(module.OURSELVES)
    await desk.once(await desk.sender())
    assert receiver.ids() == [event]


async def test_a_deleted_task_has_nothing_to_tell(desk: Desk, receiver: Receiver) -> None:
    async def gone(call: Callback) -> bytes:
        raise NotFound("there is no such task")

    await desk.due("t1", receiver.url("/hook"))
    assert await desk.once(await desk.sender(render=gone)) == 1
    assert (receiver.got, desk.counts) == ([], {})


async def test_every_way_to_end_calls_back(desk: Desk, receiver: Receiver, tasks: Tasks, claims: Claims) -> None:
    """One webhook each, written with the end itself; none before it, none for tasks without an address."""
    names = ("cancelled", "cancelling", "expired", "failed", "lost", "retried", "succeeded")
    for name in names:
        await tasks.insert(new(name, deadline_ms=60_000, callback_url=receiver.url(f"/{name}")))
    await tasks.insert(new("silent"))
    worked = ("cancelling", "failed", "lost", "retried", "silent", "succeeded")
    rows = {row.id: row for row in await claim(claims, *worked)}
    assert await desk.rows() == []
    await tasks.cancel("cancelled")
    for name in ("cancelling", "lost", "retried"):
        await tasks.cancel(name)
    await shift(desk.database, "expired", deadline_at=-61_000)
    await shift(desk.database, "lost", lease_until=-16_000)
    assert await desk.delivery.expire_overdue(10) == {"expired"}
    assert await desk.delivery.requeue(["lost"]) == 0
    assert await claims.retry("retried", rows["retried"].claim_token or "", 0, {"code": "x"})
    await claims.finish([end(rows[name]) for name in ("cancelling", "silent", "succeeded")])
    await claims.finish([end(rows["failed"], State.FAILED, error={"code": "x", "message": "x"})])
    assert [url for _, url in await desk.rows()] == [receiver.url(f"/{name}") for name in names]
    assert await desk.once(await desk.sender()) == len(names)
    assert sorted(got.path[1:] for got in receiver.got) == list(names)
