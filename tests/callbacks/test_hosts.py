"""No host stands before another, and none is reached that the service must not talk to."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from streamapp import callbacks as module
from streamapp.db.delivery import host_of
from tests.callbacks.conftest import Desk, Receiver, until


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "rebound.test"])
async def test_private_addresses_are_given_up_without_a_packet(
    desk: Desk, receiver: Receiver, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a name that was public when the task was submitted; what it resolves to now is nobody's business."""

    def loopback(name: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("streamapp.addresses.socket.getaddrinfo", loopback)
    event = await desk.due("t1", receiver.url("/hook", host))
    await desk.once(await desk.sender(private=False))
    state = await desk.state(event)
    assert (receiver.got, state.next_at) == ([], None)
    assert state.error == "the address is not one that this service talks to"


async def test_a_name_server_that_never_answers_holds_nobody_else(
    desk: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many look-ups as one host may have wait, and other names of this process are still looked up."""
    answered, asked = threading.Event(), list[str]()
    real = socket.getaddrinfo

    def look_up(name: str, *rest: Any, **given: Any) -> Any:
        if name == "hangs.test":
            asked.append(name)
            answered.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real(name, *rest, **given)

    monkeypatch.setattr("streamapp.addresses.socket.getaddrinfo", look_up)
    for number in range(2 * module.PER_HOST):
        await desk.due(f"a{number:02}", receiver.url("/hook", "hangs.test"))
    other = await desk.due("b", receiver.url("/hook", "unknown.test"))
    sender = await desk.sender(private=False, webhook_timeout=20)
    try:
        assert await sender.turn() == module.PER_HOST + 1
        await until(lambda: len(asked) == module.PER_HOST)

        async def judged() -> bool:
            return (await desk.state(other)).error is not None

        await until(judged)
    finally:
        answered.set()
        await sender.idle()


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "..test", "a b"])
async def test_a_name_that_cannot_be_one_costs_attempts_like_any_failure(desk: Desk, host: str) -> None:
    event = await desk.due("t1", f"http://{host}/hook")
    await desk.once(await desk.sender(private=False))
    state = await desk.state(event)
    assert (state.attempts, state.error is None) == (1, False)


async def test_a_slow_host_does_not_hold_others(desk: Desk, receiver: Receiver) -> None:
    """Four times as many as may be under way wait for one host, and are older."""
    receiver.paused.clear()
    slow = [await desk.due(f"a{number:03}", receiver.url("/slow")) for number in range(4 * module.PER_HOST)]
    quick = [await desk.due(f"b{number}", receiver.url("/quick", "localhost")) for number in range(3)]
    sender = await desk.sender()
    running = asyncio.create_task(sender.run())
    try:
        await until(lambda: set(quick) <= set(receiver.ids()))
        assert sum(got.path == "/slow" for got in receiver.got) <= module.PER_HOST
        receiver.paused.set()
        await until(lambda: set(slow) <= set(receiver.ids()))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert sorted(receiver.ids()) == sorted(slow + quick)


async def test_older_webhooks_of_a_busy_host_are_passed_over_in_the_database(desk: Desk) -> None:
    """However many they are, and however the host is spelled; a host whose name only begins alike is another."""
    busy = "http://busy.test"
    for number, rest in enumerate(["", "/", "?x", "#x", "/a", "/b/c", "/é", "//"] * 5):
        await desk.due(f"a{number:02}", (busy if number % 2 else "HTTP://Busy.TEST") + rest)
    others = [
        await desk.due(f"b{number}", url)
        for number, url in enumerate(["http://busy.tester/", "http://busy.test:81/", "https://busy.test/"])
    ]
    claimed = await desk.delivery.due_callbacks(3, 60, per_host=1, sending={busy: 1})
    assert [call.event_id for call in claimed] == others
    [one] = await desk.delivery.due_callbacks(3, 60, per_host=1, sending={})
    assert host_of(one.url) == busy
