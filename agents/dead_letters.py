"""What could not be worked off: counted, logged, and, where no row tells of it, listed in the database.

A failed task's letter is in the database already (see :mod:`streamapp.dead`); its record here is for whoever reads
the topic. A message that nobody could read has nothing but its record, so it goes from here into the list.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from streamapp import topics
from streamapp.dead import keep
from streamapp.errors import BadMessage
from streamapp.records import DeadLetter, decode
from streamapp.telemetry import get_logger

log = get_logger(__name__)
#: A letter holds up to 512 KiB of a message in base64.
LARGEST = 1024 * 1024


def attach(app: Any) -> None:
    """Subscribe to ``dead_letters``."""
    topic = app.topic(
        topics.DEAD_LETTERS, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )

    @app.agent(topic, name="dead_letters")  # type: ignore[untyped-decorator]
    async def dead_letters(stream: Any) -> AsyncIterator[None]:
        async for event in stream.noack().events():
            letter = take(event.value, app.counters)
            if letter is not None and letter.task_id is None:
                await keep(app.runtime.letters, letter, app.settings.retention_days * 86_400)
            event.ack()  # not earlier: a process that ends while the database is away must see it again
            yield


def take(raw: bytes | None, counters: dict[str, int]) -> DeadLetter | None:
    """Count one record; the letter in it, or ``None`` when it is not one."""
    try:
        letter = decode(DeadLetter, raw, limit=LARGEST)
    except BadMessage as error:
        log.warning(error.message, action="bad_message", topic=topics.DEAD_LETTERS)
        counters["dead_letters_unreadable"] = counters.get("dead_letters_unreadable", 0) + 1
        return None
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
    return letter
