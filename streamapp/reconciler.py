"""Finds tasks whose message is gone, and has them produced again.

A row that has not ended and that nobody holds waits for its message. That message is still to come while its offset
is at or above the group's committed offset. Below it, or below the log's start, or where the log has forgotten it
altogether, it never comes again: the row is produced once more. Doing so for a message that does come is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamapp.broker.admin import TP, Admin
from streamapp.db import Delivery, Lost
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

log = get_logger(__name__)

#: Rows looked at together.
PAGE = 1_000


class Reconciler:
    """Compares the rows with the broker's offsets."""

    def __init__(self, settings: Settings, delivery: Delivery, admin: Admin) -> None:
        self._settings = settings
        self._delivery = delivery
        self._admin = admin

    async def run(self) -> int:
        """Look at every waiting row once; how many were queued again.

        Raises:
            Unavailable: database or broker do not answer.
        """
        after, again = "", 0
        while True:
            # Rows first: a commit in between makes a task look lost that its row, asked again, knows to be over.
            rows = await self._delivery.lost_candidates(after, PAGE, self._settings.lease)
            if not rows:
                break
            after = rows[-1].task_id
            names = sorted({row.topic for row in rows if row.topic is not None})
            committed = await self._admin.committed(self._settings.app_id, names) if names else {}
            bounds = await self._admin.bounds(names) if names else {}
            lost = [row.task_id for row in rows if is_lost(row, committed, bounds)]
            again += await self._delivery.requeue(lost)
            if len(rows) < PAGE:
                break
        if again:
            log.warning("messages were lost: their tasks are produced again", action="reconciled", tasks=again)
        return again


def is_lost(row: Lost, committed: Mapping[TP, int], bounds: Mapping[TP, tuple[int, int]]) -> bool:
    """Whether the message of a waiting row can never be delivered again."""
    if row.topic is None or row.partition is None or row.offset is None:
        return True
    tp = TP(row.topic, row.partition)
    if tp not in bounds:  # the topic was deleted, or made again with fewer partitions
        return True
    first, end = bounds[tp]
    return row.offset < first or row.offset >= end or row.offset < committed.get(tp, 0)
