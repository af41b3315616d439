"""Task topics into the Backlog: nothing is acked here, what cannot be read goes to the dead letters.

The loop never stops iterating and never pauses a partition (the one stalls every topic, the other loses
messages): above the mark it tells the consumer, on each event, to leave the partition on the broker.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from typing import Any

from streamapp import topics
from streamapp.broker.record import TP
from streamapp.errors import BadMessage
from streamapp.records import DeadLetter, TaskMessage, decode
from streamapp.telemetry import get_logger
from streamapp.worker.backlog import Receipt

log = get_logger(__name__)
#: Bytes of an unreadable message that its letter keeps: in base64 they still fit into one record of 1 MiB.
RAW_KEPT = 512 * 1024


def attach(app: Any) -> None:
    """Subscribe to both topics of every family this worker serves."""
    for family in app.settings.families:
        for name in (topics.task_topic(family), topics.urgent_topic(family)):
            topic = app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
            app.agent(topic, name=f"intake.{name}")(_loop(app))

    async def rebalanced(_app: Any, assigned: Any, **_: Any) -> None:
        owned = {TP(tp.topic, tp.partition) for tp in assigned}
        await app.runtime.worker.assigned(owned)

    app.on_partitions_assigned.connect(rebalanced, weak=False)


def _loop(app: Any) -> Any:
    async def intake(stream: Any) -> AsyncIterator[None]:
        async for event in stream.noack().events():
            await receive(app, event)
            yield

    return intake


async def receive(app: Any, event: Any) -> None:
    """One event: into the Backlog, or as a dead letter off the topic."""
    message = event.message
    tp = TP(message.topic, message.partition)
    worker = app.runtime.worker
    try:
        task = decode(TaskMessage, event.value, limit=app.settings.max_message_bytes)
        if task.family not in app.settings.families:
            raise BadMessage(f"family {task.family} is not served here", reason="foreign")
    except BadMessage as error:
        await app.dead_letter(
            DeadLetter(
                task_id=None,
                topic=tp.topic,
                partition=tp.partition,
                offset=message.offset,
                reason=str(error.details.get("reason", error.code)),
                message=error.message,
                at=app.runtime.clock.now(),
                raw=None if event.value is None else base64.b64encode(event.value[:RAW_KEPT]).decode(),
                size=None if event.value is None else len(event.value),
            )
        )
        log.warning(error.message, action="bad_message", topic=tp.topic, partition=tp.partition, offset=message.offset)
        event.ack()
        return
    # What is left of the event is only to be acked, perhaps hours later: its bytes need not wait with it.
    event.value = message.value = None
    worker.receive(task, Receipt(tp, message.offset, event.ack), time.monotonic())
    if worker.backlog.full(tp.topic):
        worker.backlog.mark(tp)
        app.consumer.on_buffer_full(message.tp)  # Faust asserts its own type here
