"""Claims of one worker that leave nothing behind when their answer never comes."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from streamapp.db import Claims, TaskRow


class Claimer:
    """Claims jobs for one worker.

    A database that dies while it answers may have made the claim: the row would then run under a token that nobody
    holds until its lease is over, and an attempt would count that never began. So each claim has its token before it
    is sent, and what is in doubt is given up before the next one.
    """

    def __init__(self, claims: Claims, worker_id: str, lease: float) -> None:
        self._claims = claims
        self._worker_id = worker_id
        self._lease = lease
        self._doubtful: dict[str, str] = {}

    async def claim(self, ids: Collection[str]) -> list[TaskRow]:
        """Claim what can be claimed of ``ids``.

        Raises:
            Unavailable: the database did not answer.
        """
        await self.settle()
        token = secrets.token_hex(12)
        try:
            return await self._claims.claim(ids, self._worker_id, self._lease, token=token)
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
