"""Absolute window counters into the global ``throughput`` table: its only writer."""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from agents.analytics import WINDOWS
from streamapp import topics
from streamapp.dead import dropped
from streamapp.errors import BadMessage
from streamapp.records import ThroughputCount, check_time, decode
from streamapp.telemetry import get_logger
from tables.throughput import Throughput

log = get_logger(__name__)


def attach(app: Any) -> None:
    """Subscribe to ``throughput_totals``."""
    topic = app.topic(
        topics.THROUGHPUT_TOTALS, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )
    swept = Swept()

    @app.agent(topic, name="totals")  # type: ignore[untyped-decorator]
    async def totals(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            try:
                take(event.value, app.read_models.throughput, swept, now=app.runtime.clock.now())
            except BadMessage as error:
                dropped(app.counters, topics.THROUGHPUT_TOTALS, error)
            yield


class Swept:
    """The newest minute whose sweep was done."""

    minute = 0


def take(raw: bytes | None, table: MutableMapping[str, Throughput], swept: Swept, *, now: int | None = None) -> None:
    """Write one absolute value; once per minute delete windows that are too old."""
    count = decode(ThroughputCount, raw)
    if now is not None:
        check_time(count.start, now)
    if count.window not in WINDOWS:
        raise BadMessage(f"window {count.window!r} is not known here", reason="fields")
    table[count.key] = Throughput(start=count.start, count=count.model_dump(mode="json"))
    minute = count.start // 60_000
    if minute > swept.minute:
        swept.minute = minute
        for key, row in list(table.items()):
            length, kept = WINDOWS[key.split("|", 1)[0]]
            if count.start - row.start > length + kept:
                del table[key]
