"""The end of a worker's day: what runs may finish, the rest is handed back."""

from __future__ import annotations

import asyncio

from streamapp.db import Claims
from streamapp.errors import Unavailable
from streamapp.telemetry import get_logger
from streamapp.worker.claimed import Claimed, Why

log = get_logger(__name__)
#: Seconds in which a stopped job notices.
NOTICE = 2.0


async def drain(running: dict[str, Claimed], claims: Claims, limit: float) -> tuple[int, int]:
    """Let running jobs finish for ``limit`` seconds, hand the rest back: (finished, handed back).

    Jobs that only waited need nothing: they are not claimed, and their events are not acked.

    Raises:
        Unavailable: something could not be written; its lease runs out, and others draw it then.
    """
    tasks = [claimed.task for claimed in running.values() if claimed.task is not None]
    finished = 0
    if tasks:
        done, _ = await asyncio.wait(tasks, timeout=limit)
        finished = len(done)
    left = list(running.values())
    for claimed in left:
        claimed.stop(Why.DRAIN)
    if left:
        await asyncio.wait([claimed.task for claimed in left if claimed.task is not None], timeout=NOTICE)
    tokens = {claimed.row.id: claimed.token for claimed in left if claimed.why is Why.DRAIN}
    handed = await claims.hand_back(tokens) if tokens else set()
    log.info("drained", action="drained", finished=finished, handed_back=len(handed))
    if unwritten := [claimed.row.id for claimed in left if claimed.ending and claimed.row.id in running]:
        raise Unavailable(f"the end of {len(unwritten)} tasks could not be written in time")
    return finished, len(handed)
