"""Records to the broker, many at a time: in their order, under one wait, each with its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError
from faust.exceptions import FaustError

from streamapp.errors import Unavailable

if TYPE_CHECKING:
    from streamapp.app import StreamApp

#: A record to send: topic, partition (None: by the key), key, value.
Outgoing = tuple[str, int | None, bytes | None, bytes | None]
#: Partition and offset, or why the broker did not take it.
Placed = tuple[int, int] | Unavailable
#: Longest wait for records to be accepted by the broker, in seconds.
SEND_TIMEOUT = 10.0


async def send_all(app: StreamApp, records: Sequence[Outgoing]) -> list[Placed]:
    """Send records in their order and wait for all: where the broker put each, or why it did not take it."""
    if not app.started or not app.producer.started:
        return [Unavailable("the broker is not connected yet", retry_after=5) for _ in records]
    answers: list[Placed | None] = [None] * len(records)
    sent: dict[asyncio.Future[Any], int] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(SEND_TIMEOUT):
            for number, (topic, partition, key, value) in enumerate(records):
                try:
                    sending = await app.producer.send(topic, key, value, partition, None, [])
                except (KafkaError, FaustError, OSError) as error:
                    answers[number] = _refused(topic, error)
                    continue
                future: asyncio.Future[Any] = asyncio.ensure_future(sending)
                future.add_done_callback(_seen)
                sent[future] = number
            if sent:
                await asyncio.wait(sent)
    for future, number in sent.items():
        if future.done():
            answers[number] = _placed(records[number][0], future)
    return [answer or _refused(records[number][0], None) for number, answer in enumerate(answers)]


def _seen(sent: asyncio.Future[Any]) -> None:
    """One that fails after its time is nobody's any more, and not to be complained about."""
    if not sent.cancelled():
        sent.exception()


def _placed(topic: str, sent: asyncio.Future[Any]) -> Placed:
    error = asyncio.CancelledError() if sent.cancelled() else sent.exception()
    if error is not None:
        return _refused(topic, error)
    return int(sent.result().partition), int(sent.result().offset)


def _refused(topic: str, error: BaseException | None) -> Unavailable:
    refused = Unavailable(f"the broker did not take a record for {topic}: {error or 'no answer'}")
    refused.__cause__ = error
    return refused
