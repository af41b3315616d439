"""The HTTP client: what it repeats, what it raises, how it waits."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from streamapp import client as client_module
from streamapp.client import Busy, Client, Task, TimedOut, Unreachable
from streamapp.errors import InvalidRequest, NotFound
from tests.cli.service_double import PIXEL, Double

QUEUED = {"status": "queued", "progress": 0}
HALF = {"status": "running", "progress": 50}
DONE = {"status": "succeeded", "progress": 100, "images": [{"url": "/files/a%2Fb.png?exp=1&sig=x"}]}


@pytest.fixture
def double() -> Double:
    return Double(deque([QUEUED, HALF, DONE]))


@pytest.fixture
async def client(double: Double, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(client_module, "POLL_S", 0.001)
    monkeypatch.setattr(client_module, "_pause", lambda after, turn: 0.0)
    async with TestServer(double.app()) as server, Client(str(server.make_url("/")), api_key="k1", retries=2) as client:
        yield client


@pytest.mark.parametrize("events", [True, False], ids=["by events", "by asking"])
async def test_waiting_reports_every_change_and_ends_with_the_pictures(
    client: Client, double: Double, events: bool
) -> None:
    double.events = events
    seen: list[Task] = []
    task = await client.wait((await client.submit({"text": "a cat"})).id, seen=seen.append)
    assert [now.progress for now in seen[:2]] == [0, 50]
    assert task.status == "succeeded"
    assert task.images == (f"{client.url}/files/a%2Fb.png?exp=1&sig=x".replace("0.1//", "0.1/"),)


async def test_a_full_service_is_asked_again_with_the_same_idempotency_key(client: Client, double: Double) -> None:
    double.refusals.append((429, {"Retry-After": "0"}, {"code": "overloaded", "message": "full"}))
    assert (await client.submit({"text": "a cat"})).id == "img-1"
    first, second = double.submitted
    assert first["idempotency_key"] == second["idempotency_key"] != ""


async def test_a_service_that_stays_full_is_busy_with_its_own_sentence(client: Client, double: Double) -> None:
    double.refusals.extend([(503, {}, {"code": "unavailable", "message": "the database is away"})] * 3)
    with pytest.raises(Busy, match="the database is away"):
        await client.submit({"text": "a cat"})
    assert len(double.submitted) == 3


async def test_a_refusal_is_not_repeated(client: Client, double: Double) -> None:
    double.refusals.append((400, {}, {"code": "invalid_request", "message": "steps: at most 150"}))
    with pytest.raises(InvalidRequest, match="steps: at most 150"):
        await client.submit({"text": "a cat"})
    assert len(double.submitted) == 1


async def test_an_unknown_task_is_not_found_even_when_waited_for(client: Client) -> None:
    with pytest.raises(NotFound, match="no task of that name"):
        await client.wait("img-2")


async def test_waiting_has_a_limit_and_says_that_the_task_goes_on(client: Client, double: Double) -> None:
    double.events = False
    double.states = deque([QUEUED])
    with pytest.raises(TimedOut, match="goes on"):
        await client.wait("img-1", timeout_s=0.05)


async def test_nobody_at_the_address_is_one_sentence() -> None:
    async with Client("http://127.0.0.1:9", retries=0) as client:
        with pytest.raises(Unreachable, match="streamapp up"):
            await client.show("img-1")
        assert not await client.ready()


async def test_pictures_are_saved_whole_and_the_key_goes_to_the_service_only(
    client: Client, double: Double, tmp_path: Path
) -> None:
    double.states = deque([DONE])
    task = await client.show("img-1")
    (path,) = await client.download(task, tmp_path / "new")
    assert path.name == "img-1-0.png"
    assert path.read_bytes() == PIXEL
    assert double.headers[-1]["Authorization"] == "Bearer k1"

    stranger = Double()
    async with TestServer(stranger.app()) as elsewhere:
        await client.download(Task("img-9", "succeeded", 100, (str(elsewhere.make_url("/files/x")),)), tmp_path)
    assert "Authorization" not in stranger.headers[-1]
