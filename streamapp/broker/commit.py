"""The repaired commit rule, for every Faust consumer of this service.

Why Faust 0.15.3's own rule loses work (``faust/transport/consumer.py``):

- ``_new_offset`` skips its gap check while the committed offset is ``None`` or 0 and is off by one otherwise: with
  offsets 0-4 of a fresh group held and 5-9 acked it commits 10, and a kill -9 loses 0-4.
- ``_add_gap`` counts the record *behind* a hole as part of the hole, so it is committed before it is acked; and a
  record that was fetched but dropped (a paused partition) leaves a hole that counts as acked.
- The base of the comparison is forgotten when partitions are revoked, while the commit timer runs on and late acks
  of the former assignment still arrive.
- A commit that failed is remembered as done and never tried again until the next ack; one that ends after a
  rebalance is noted under the new assignment, whose acks are then ignored.

The rule here: a :class:`Ledger` per partition lists what was *fetched* in this assignment, in log order, from the
seek position on. An offset is committable when everything fetched before it is acked. Nothing is committed while
the base is unknown (no seek to the committed offsets has finished in this assignment) and nothing while the lowest
fetched offset is un-acked. The base is the committed offset, else the first offset fetched; it is forgotten at
revocation. Holes that compaction or retention left in the log are no holes in what was fetched, so they do not stop
the commit; a record that was fetched and dropped does.

The ledger is only right if fetching starts exactly at the position that was sought. So records of source topics are
fetched only after ``perform_seek`` has finished and the flow was resumed: before that, Faust empties the channels
(``flow_control.resume``) and re-positions the consumer under a running fetch, and what was fetched is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from faust.transport.consumer import Consumer, RecordMap, ensure_TP
from faust.types import TP
from faust.types.tuples import ack_lock

__all__ = ["CommitRule", "Ledger"]


class Ledger:
    """What one partition fetched in this assignment, and how far it may be committed.

    ``base`` is the offset the assignment started from (``None`` until known), ``position`` the offset to commit:
    everything fetched below it is acked.
    """

    __slots__ = ("base", "following", "pending", "position")

    def __init__(self, base: int | None = None) -> None:
        self.base = base
        self.position = base or 0
        self.following = base or 0
        self.pending: deque[int] = deque()

    def fetched(self, offsets: Iterable[int]) -> None:
        """Note offsets in log order; those seen before (read again after a seek back) are skipped."""
        for offset in offsets:
            if self.base is None:
                self.base = self.position = self.following = offset
            if offset >= self.following:
                self.pending.append(offset)
                self.following = offset + 1

    def settle(self, acked: set[int]) -> int | None:
        """Take the acked offsets off the front and return the offset to commit, ``None`` while nothing is.

        Offsets behind the commit point are removed from ``acked``.
        """
        pending = self.pending
        while pending and pending[0] in acked:
            acked.discard(pending[0])
            self.position = pending.popleft() + 1
        if self.base is None or self.position <= self.base:
            return None
        return self.position


@dataclass(frozen=True)
class _Fetch:
    """One running fetch: a cancelled waiter leaves it running, and the next one takes its records."""

    task: asyncio.Future[RecordMap]
    epoch: int


class CommitRule(Consumer):
    """Mixin for Faust consumers: put it before the driver's own class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ledgers: dict[TP, Ledger] = {}
        self._epoch = 0
        self._sought = False
        self._open = False
        self._opened = asyncio.Event()
        self._fetch: _Fetch | None = None
        super().__init__(*args, **kwargs)

    # The assignment's life: revoked, assigned, sought, open.

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget base and ledgers at once: a late ack or the commit timer must find nothing to commit."""
        self._close_gate()
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Start the new assignment with nothing known; marks of full buffers belong to the old one."""
        self._close_gate()
        self._buffered_partitions.clear()
        await super().on_partitions_assigned(assigned, generation_id)

    def _close_gate(self) -> None:
        self._epoch += 1
        self._sought = self._open = False
        self._opened.clear()
        self._ledgers.clear()

    async def perform_seek(self) -> None:
        """Seek to the committed offsets while no fetch of a source topic is under way, and learn the bases."""
        epoch = self._epoch
        fetch = self._fetch
        if fetch is not None and not fetch.task.done():
            await asyncio.wait([fetch.task])
        # Faust keeps what it knew where nothing is committed; that may be a commit of the former assignment.
        for tp in self.assignment():
            self._committed_offset.pop(tp, None)
        await super().perform_seek()
        if epoch != self._epoch:
            return
        for tp in self.assignment():
            if self._acks_enabled(tp):
                committed = self._committed_offset[tp]
                ledger = self._ledgers.get(tp)
                if ledger is None or (committed or 0) > ledger.following:
                    self._ledgers[tp] = Ledger(committed)
        self._sought = True

    def resume_flow(self) -> None:
        """Let records through: of source topics only once this assignment's seek has finished."""
        super().resume_flow()
        if self._sought and not self._open:
            self._open = True
            self._opened.set()
            self._interrupt_fetch()

    def _interrupt_fetch(self) -> None:
        """Called when more partitions may be fetched; a driver that can, ends its waiting fetch early."""

    # Fetching.

    def _acks_enabled(self, tp: TP) -> bool:
        return self.app.topics.acks_enabled_for(tp.topic)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> RecordMap:
        """Fetch through the driver and note every record of a source topic in its partition's ledger."""
        if active_partitions is None:  # client-only applications have no group and commit nothing
            return await self._driver_getmany(None, timeout)
        fetch = self._fetch
        if fetch is None:
            # The live set when open: a partition that is no longer full joins the waiting fetch.
            wanted = active_partitions if self._open else {tp for tp in active_partitions if not self._acks_enabled(tp)}
            if not wanted:
                await self._wait_for_opening(timeout)
                return {}
            task = asyncio.ensure_future(self._driver_getmany(wanted, timeout))
            fetch = self._fetch = _Fetch(task, self._epoch)
        try:
            records = await asyncio.shield(fetch.task)
        finally:
            if fetch.task.done():
                self._fetch = None
        if fetch.epoch != self._epoch or not self._open:
            # The seek still to come reads these again.
            return {tp: found for tp, found in records.items() if not self._acks_enabled(ensure_TP(tp))}
        for tp, found in records.items():
            ledger = self._ledgers.get(tp)
            if ledger is not None:
                ledger.fetched(record.offset for record in found)
        return records

    def _driver_getmany(self, wanted: set[TP] | None, timeout: float) -> Awaitable[RecordMap]:
        # The method of the next class, which to a type checker is the abstract one.
        return super()._getmany(wanted, timeout)  # type: ignore[safe-super]

    async def _wait_for_opening(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._opened.wait(), timeout)

    async def on_stop(self) -> None:
        """Commit what may be committed, then give up a fetch that nobody waits for any more."""
        await super().on_stop()
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            fetch.task.cancel()

    # Committing.

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit: all fetched below it is acked; ``None`` while there is no such progress."""
        ledger = self._ledgers.get(tp)
        if ledger is None or not self._sought:
            return None
        with ack_lock:
            # The index holds the same offsets as the list, which only Faust's own rule reads.
            self._acked[tp].clear()
            return ledger.settle(self._acked_index[tp])

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Holes need no bookkeeping: the ledger knows what was fetched."""

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        """Commit, and keep a failed commit for the next turn of the timer instead of taking it for done."""
        before = {tp: self._committed_offset[tp] for tp in offsets}
        epoch = self._epoch
        done = await super()._commit_offsets(offsets, start_new_transaction)
        if epoch != self._epoch:
            # Faust noted the commit under the new assignment, where only what was sought counts.
            ledgers = {tp: self._ledgers.get(tp) for tp in offsets}
            self._committed_offset.update({tp: ledger.base if ledger else None for tp, ledger in ledgers.items()})
        elif not done:
            self._committed_offset.update(before)
        return done
