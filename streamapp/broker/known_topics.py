"""A group leader that assigns partitions only once it knows the topics.

A broker that has just come back lists topics one after another. aiokafka's leader assigns what it knows at that
moment; the partitions of the other topics then belong to nobody, and the tables that wait for theirs never become
ready, until the client looks again: after five minutes.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocol

logger = logging.getLogger(__name__)

#: Longest wait for topics that members want, in seconds: a topic that was deleted must not stop the group.
PATIENCE = 8.0
PAUSE = 0.2


def wait_for_topics(coordinator: Any, patience: float = PATIENCE) -> None:
    """Let this consumer's coordinator, when it leads, wait for the topics that any member wants."""
    assign = coordinator._perform_assignment

    @functools.wraps(assign)
    async def assign_known(response: Any) -> Any:
        await _known(coordinator._client, _wanted(response), patience)
        return await assign(response)

    coordinator._perform_assignment = assign_known


def _wanted(response: Any) -> set[str]:
    """The topics of all members of an answer to a join."""
    return {topic for *_, raw in response.members for topic in ConsumerProtocol.METADATA.decode(raw).subscription}


async def _known(client: Any, topics: set[str], patience: float) -> None:
    """Ask for metadata until it has every topic, or patience ends."""

    def missing() -> list[str]:
        return sorted(topic for topic in topics if not client.cluster.partitions_for_topic(topic))

    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    if missing():
        client.set_topics(topics)
    while missing():
        if loop.time() >= end:
            logger.warning("Assigning partitions without topics that the broker does not list: %s", missing())
            return
        await client.force_metadata_update()
        if missing():
            await asyncio.sleep(PAUSE)
