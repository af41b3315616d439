"""What could not be worked off: counted and logged. The topic keeps the records, the row keeps the history."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from streamapp import topics
from streamapp.errors import BadMessage
from streamapp.records import DeadLetter, decode
from streamapp.telemetry import get_logger

log = get_logger(__name__)


def attach(app: Any) -> None:
    """Subscribe to ``dead_letters``."""
    topic = app.topic(
        topics.DEAD_LETTERS, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )

    @app.agent(topic, name="dead_letters")  # type: ignore[untyped-decorator]
    async def dead_letters(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            take(event.value, app.counters)
            yield


def take(raw: bytes | None, counters: dict[str, int]) -> None:
    """Count one dead letter by its reason."""
    try:
        letter = decode(DeadLetter, raw, limit=1024 * 1024)
    except BadMessage as error:
        log.warning(error.message, action="bad_message", topic=topics.DEAD_LETTERS)
        counters["dead_letters_unreadable"] = counters.get("dead_letters_unreadable", 0) + 1
        return
    counters["dead_letters"] = counters.get("dead_letters", 0) + 1
    log.warning(
        letter.message,
        action="dead_letter",
        task_id=letter.task_id,
        reason=letter.reason,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        attempts=letter.attempts,
    )
