"""Whatever is on the topics, a worker reads on: bad messages end as dead letters or are dropped with a counter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from streamapp import topics
from streamapp.db import State
from streamapp.records import DeadLetter, TaskEvent, ThroughputCount, WorkerStatus
from tests.agents.conftest import Service, Start
from tests.agents.test_spine import committed
from tests.worker.support import message

TOPICS = (
    topics.task_topic("sd15"),
    topics.urgent_topic("sd15"),
    topics.WORKER_STATUS,
    topics.TASK_EVENTS,
    topics.DEAD_LETTERS,
    topics.THROUGHPUT_TOTALS,
)
#: One good record of each kind; the fuzz spoils some of its fields.
GOOD: tuple[dict[str, Any], ...] = tuple(
    json.loads(record.encode())
    for record in (
        message("nobody"),
        WorkerStatus(
            worker_id="w9", host="h", pid=1, port=1, role="worker", families=("sd15",), device="cpu", engine="ready",
            state="running", started_at=1, at=1, partitions={"sd15_tasks": (0, 1)},
        ),
        TaskEvent(
            event_id="e", task_id="t", event="succeeded", at=1, user_id="u", family="sd15", model="m", shape="1x1",
        ),
        DeadLetter(topic="sd15_tasks", partition=0, offset=1, reason="r", message="m", at=1),
        ThroughputCount(window="minute", start=60_000, family="f", shape="1x1", with_lora=False, partition=0),
    )
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-1, 4),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63)]),
    st.floats(),
)
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["", "\x00", "|", "a|b|c", "x" * 300, "gone", "💥", "../.."]))
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def like(value: Any) -> st.SearchStrategy[Any]:
    """Something that may pass for ``value``, or nearly."""
    match value:
        case bool():
            return st.booleans() | JUNK
        case int() | float():
            return NUMBERS
        case str():
            return TEXTS
        case dict():
            return st.dictionaries(TEXTS, NUMBERS | st.lists(NUMBERS, max_size=3), max_size=3)
    return JUNK


@st.composite
def spoilt(draw: st.DrawFn, kinds: tuple[dict[str, Any], ...] = GOOD) -> bytes:
    """A record of ours with a few fields replaced, dropped or added."""
    body = dict(draw(st.sampled_from(kinds)))
    fields = [name for name in body if name not in {"kind", "v"}]
    for name in draw(st.lists(st.sampled_from(fields), max_size=3)):
        body[name] = draw(like(body[name]))
    rare = draw(st.integers(0, 9))
    if rare == 0:
        del body[draw(st.sampled_from(list(body)))]
    elif rare == 1:
        body[draw(st.sampled_from(["extra", "kind", "v"]))] = draw(JUNK)
    elif rare == 2 and isinstance(body.get("params"), dict):
        name = draw(st.sampled_from(list(body["params"])))
        body["params"] = {**body["params"], name: draw(like(body["params"][name]))}
    return json.dumps(body).encode()


Record = tuple[str, bytes | None, bytes | None]
VALUES = st.one_of(
    spoilt(),
    st.none(),
    st.binary(max_size=200),
    JUNK.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"", b"[" * 100_000, b'{"kind":' * 5_000, b"\xff\xfe", b"{}", b"null", b'"' + b"x" * 70_000 + b'"']
    ),
)
#: Which of the good records belong onto each topic.
AT_HOME = dict(zip(TOPICS, (GOOD[0], *GOOD), strict=True))


@st.composite
def sent(draw: st.DrawFn) -> tuple[str, bytes | None, bytes | None]:
    """Topic, key and value; most are nearly what the topic expects, since the rest is turned away early."""
    topic = draw(st.sampled_from(TOPICS))
    value = draw(VALUES if draw(st.integers(0, 3)) == 0 else spoilt((AT_HOME[topic],)))
    return topic, draw(st.none() | st.binary(max_size=10)), value


RECORDS = st.lists(sent(), min_size=1, max_size=40)


async def test_nothing_on_the_topics_stops_a_worker(start: Start) -> None:
    async with start(status_interval=0.1) as service:
        await service.ready()
        loop = asyncio.get_running_loop()
        number = iter(range(10_000))

        async def survive(records: list[Record]) -> None:
            for topic, key, value in records:
                await service.app.produce(topic, None, key, value)
            await reads_on(service, f"t{next(number)}")

        @hypothesis.settings(
            max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
        )
        @given(RECORDS)
        def fuzz(records: list[Record]) -> None:
            asyncio.run_coroutine_threadsafe(survive(records), loop).result(60)

        await asyncio.to_thread(fuzz)
        for topic in TOPICS[:2]:
            await service.until(lambda topic=topic: committed(service, topic))
        assert service.app.counters["dead_letters"] > 0
        assert service.app.counters["dropped_worker_status"] > 0


async def reads_on(service: Service, task_id: str) -> None:
    """Every agent still works: a task is drawn, and every other topic is read to its end."""
    await service.deliver(task_id)
    assert await service.ended(task_id) == {task_id: State.SUCCEEDED}
    admin, group = service.app.runtime.admin, service.app.settings.app_id

    async def read(topic: str) -> bool:
        ends = {tp: end for tp, (_, end) in (await admin.bounds([topic])).items() if end}
        offsets = await admin.committed(group, [topic])
        return all(offsets.get(tp, 0) >= end for tp, end in ends.items())

    for topic in (topics.TASK_EVENTS, topics.DEAD_LETTERS):
        await service.until(_later(read, topic))


def _later(ask: Callable[[str], Awaitable[bool]], topic: str) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return await ask(topic)

    return asked
