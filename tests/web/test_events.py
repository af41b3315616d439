"""Live progress: every state that is seen is newer than the one before, and a stream can be taken up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from streamapp.db import Glimpse, State
from tests.web.conftest import Api
from web import events

TASK = "/api/v1/image/task"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "INTERVAL", 0.02)
    monkeypatch.setattr(events, "HEARTBEAT", 0.2)


class Reader:
    """The events of a stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.beats = 0

    async def next(self) -> tuple[str, dict[str, Any]] | None:
        """Id and data of the next event; ``None`` at the end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            while line := (await self.answer.content.readline()).decode():
                if line.startswith(":"):
                    self.beats += 1
                elif line.strip():
                    name, _, value = line.rstrip("\n").partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    assert fields["event"] == "task"
                    return fields["id"], orjson.loads(fields["data"])
        return None


@asynccontextmanager
async def following(api: Api, task_id: str, last: str | None = None) -> AsyncIterator[Reader]:
    headers = {} if last is None else {"Last-Event-ID": last}
    async with api.session.get(f"{api.url}{TASK}/{task_id}/events", headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        yield Reader(answer)


async def told(reader: Reader) -> tuple[str, dict[str, Any]]:
    found = await reader.next()
    assert found is not None
    return found


async def test_a_stream_tells_each_state_and_ends_with_the_whole_task(api: Api) -> None:
    task_id = await api.submitted()
    async with following(api, task_id) as reader:
        assert (await told(reader))[1]["status"] == "queued"
        row = await api.claimed(task_id)
        assert (await told(reader))[1]["status"] == "running"
        assert row.claim_token is not None
        await api.runtime.claims.beat({task_id: (row.claim_token, 0.5)})
        assert (await told(reader))[1]["progress"] == 50.0
        await api.runtime.claims.hand_back({task_id: row.claim_token})
        assert (await told(reader))[1]["status"] == "queued"
        await api.ended(task_id)
        states = []
        while found := await reader.next():
            states.append(found[1])
        assert states[-1]["status"] == "succeeded"
        assert len(states[-1]["images"]) == 1
        assert states[-1]["recipe"]["text"] == "a red apple"


async def test_a_stream_is_taken_up_where_it_was(api: Api) -> None:
    task_id = await api.submitted()
    async with following(api, task_id) as reader:
        version, _ = await told(reader)
    async with following(api, task_id, version) as reader:
        await api.claimed(task_id)
        later, state = await told(reader)
        assert state["status"] == "running", "what was seen is not told again"
        assert int(later) > int(version)


async def test_after_the_end_there_is_nothing_to_come_back_for(api: Api) -> None:
    task_id = await api.submitted()
    await api.ended(task_id)
    async with following(api, task_id) as reader:
        version, whole = await told(reader)
        assert whole["status"] == "succeeded"
        assert await reader.next() is None
    answer = await api.get(f"{TASK}/{task_id}/events", headers={"Last-Event-ID": version})
    assert answer.status == 204


async def test_a_silent_stream_beats(api: Api) -> None:
    task_id = await api.submitted()
    async with following(api, task_id) as reader:
        await told(reader)
        waiting = asyncio.create_task(told(reader))
        async with asyncio.timeout(5):
            while reader.beats < 2:
                await asyncio.sleep(0.02)
        await api.claimed(task_id)
        assert (await waiting)[1]["status"] == "running"


async def test_streams_end_when_the_process_stops(api: Api) -> None:
    task_id = await api.submitted()
    async with following(api, task_id) as reader:
        await told(reader)
        api.app.closing.set()
        assert await reader.next() is None


async def test_many_streams_are_one_query(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [await api.submitted() for _ in range(20)]
    asked: list[int] = []
    watch = api.runtime.tasks.watch

    async def counted(some: Any) -> Any:
        asked.append(len(some))
        return await watch(some)

    monkeypatch.setattr(api.runtime.tasks, "watch", counted)

    async def first(task_id: str) -> None:
        async with following(api, task_id) as reader:
            await told(reader)
            async with asyncio.timeout(5):
                while 20 not in asked:
                    await asyncio.sleep(0.01)

    await asyncio.gather(*(first(task_id) for task_id in ids))
    assert max(asked) == 20


async def test_more_streams_than_the_limit_are_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 1)
    task_id = await api.submitted()
    async with following(api, task_id) as reader:
        await told(reader)
        answer = await api.get(f"{TASK}/{task_id}/events")
        answer.refused(429, "overloaded")
        assert "Retry-After" in answer.headers


def test_an_answer_that_comes_late_is_not_told() -> None:
    stream = events.Stream()
    stream.show(Glimpse("img-1", State.RUNNING, 0.5, 4, False))
    stream.changed.clear()
    stream.show(Glimpse("img-1", State.QUEUED, 0.0, 3, False))
    assert not stream.changed.is_set()
    assert stream.seen is not None
    assert stream.seen.state is State.RUNNING
