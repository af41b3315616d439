"""A buffer of records that outlives the broker's absence.

Records of table changelogs wait in Faust's producer buffer. At the first one that the broker does not take in time
(aiokafka's ``KafkaTimeoutError``) Faust's own buffer ends, and the whole application with it: ten seconds without a
broker took processes down.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from aiokafka.errors import KafkaError, KafkaTimeoutError
from faust.exceptions import FaustError
from faust.transport.producer import Producer, ProducerBuffer
from faust.types.tuples import FutureMessage

logger = logging.getLogger(__name__)
#: Seconds between two tries of one record.
PAUSE = 1.0


class PatientBuffer(ProducerBuffer):
    """Tries a record again until the broker takes it, in order; gives up one that it never will."""

    pause = PAUSE

    async def _send_pending(self, fut: FutureMessage) -> None:
        while not self.should_stop:
            try:
                await super()._send_pending(fut)
                return
            except FaustError as error:
                if not _passes(error):
                    logger.exception("A record of %s was given up", fut.message.channel)
                    return
                logger.warning("Waiting for the broker to take a record: %r", error.__cause__ or error)
                await asyncio.sleep(self.pause)


def be_patient(producer: Producer) -> None:
    """Give a new producer this buffer."""
    old = cast("ProducerBuffer", producer.buffer)
    buffer = PatientBuffer(loop=producer.loop, beacon=producer.beacon)
    buffer.app, buffer.max_messages = old.app, old.max_messages
    producer.buffer = buffer


def _passes(error: BaseException) -> bool:
    """Whether trying again may help: the broker is away or slow, or the producer not connected yet."""
    cause = error.__cause__
    return not isinstance(cause, KafkaError) or isinstance(cause, KafkaTimeoutError) or bool(cause.retriable)
