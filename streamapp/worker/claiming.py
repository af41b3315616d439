"""Claims of one worker that leave nothing behind when their answer never comes."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Collection

from streamapp.clock import Clock
from streamapp.db import Claims, State, TaskRow
from streamapp.records import TaskMessage
from streamapp.settings import Settings

#: Messages kept until their task is claimed, or until so many came after them: enough for a worker with little to do.
AT_HAND = 64


class Claimer:
    """Claims jobs for one worker.

    A database that dies while it answers may have made the claim: the row would then run under a token that nobody
    holds until its lease is over, and an attempt would count that never began. So each claim has its token before it
    is sent, and what is in doubt is given up before the next one.

    A lone task whose message just came needs no row to be read: the claim says what the message says, and holds only
    if the row says the same.
    """

    def __init__(self, claims: Claims, settings: Settings, clock: Clock) -> None:
        self._claims = claims
        self._settings = settings
        self._clock = clock
        self._doubtful: dict[str, str] = {}
        self._at_hand: OrderedDict[str, TaskMessage] = OrderedDict()

    def note(self, message: TaskMessage) -> None:
        """A message that just came."""
        self._at_hand[message.task_id] = message
        if len(self._at_hand) > AT_HAND:
            self._at_hand.popitem(last=False)

    async def claim(self, ids: Collection[str]) -> list[TaskRow]:
        """Claim what can be claimed of ``ids``.

        Raises:
            Unavailable: the database did not answer.
        """
        await self.settle()
        token, known = secrets.token_hex(12), self._known(ids)
        try:
            return await self._claims.claim(
                ids, self._settings.worker_id, self._settings.lease, token=token, known=known
            )
        except BaseException:
            self._doubtful = dict.fromkeys(ids, token)
            raise

    async def settle(self) -> None:
        """Give up what the last claim may have made; harmless when it made nothing.

        Raises:
            Unavailable: the database did not answer; what is in doubt stays so.
        """
        if self._doubtful:
            await self._claims.hand_back(self._doubtful)
            self._doubtful = {}

    def _known(self, ids: Collection[str]) -> TaskRow | None:
        """The row of a lone task, if its message is at hand; forgets the messages of ``ids``."""
        messages = [self._at_hand.pop(task_id, None) for task_id in ids]
        if len(messages) != 1 or messages[0] is None:
            return None
        return as_submitted(messages[0], self._settings.max_attempts, self._clock.now())


def as_submitted(message: TaskMessage, max_attempts: int, started_at: int) -> TaskRow:
    """The row that a task has if nothing happened to it since it was submitted, but for what no worker reads."""
    return TaskRow(
        id=message.task_id,
        user_id=message.user_id,
        idempotency_key=None,
        state=State.QUEUED,
        priority=message.priority,
        family=message.family,
        model=message.model,
        params=message.params,
        request={},
        cost=message.cost,
        attempts=0,
        max_attempts=max_attempts,
        claim_token=None,
        claimed_by=None,
        lease_until=None,
        not_before=None,
        cancel_requested=False,
        progress=0.0,
        version=1,
        error=None,
        history=(),
        timings={},
        submitted_at=message.submitted_at,
        started_at=started_at,
        ended_at=None,
        deadline_at=message.deadline_at,
        callback_url=None,
        trace=message.trace,
        produce_at=None,
        topic=None,
        partition=None,
        offset=None,
    )
