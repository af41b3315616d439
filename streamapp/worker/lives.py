"""A claimed job from its row to its end: draw, finish the pictures, store them, write the end, ack.

Every way out is here: success, failure, cancellation, a lost lease, a crashed engine, a drain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from streamapp.db import End, ImageRow, State, TaskRow
from streamapp.errors import AppError, Unavailable
from streamapp.records import DeadLetter, TaskEvent
from streamapp.retry import FallBack, Park, Suspect, decide
from streamapp.scheduling.cost import Rates, estimate
from streamapp.telemetry import bind, get_logger
from streamapp.worker.backlog import Backlog, Job
from streamapp.worker.claimed import Claimed, Counts, Why
from streamapp.worker.drawing import LOADED, EngineCrashed, Progress, tier_of
from streamapp.worker.faults import internal, mends
from streamapp.worker.finisher import Finisher
from streamapp.worker.loading import WeightsComing
from streamapp.worker.parts import Parts

log = get_logger(__name__)
LONGEST_DELAY = 5.0
#: Seconds after which a task is looked at again whose weights are on their way to this host.
COMING = 2.0


class Lives:
    """Runs claimed jobs; holds what they need in common."""

    def __init__(
        self, worker_id: str, parts: Parts, backlog: Backlog, finisher: Finisher, changed: Callable[[], None]
    ) -> None:
        self.worker_id = worker_id
        self.parts = parts
        self.claims = parts.claims
        self.backlog = backlog
        self.finisher = finisher
        self.changed = changed
        self.rates = Rates()
        self.running: dict[str, Claimed] = {}
        self.suspects: set[str] = set()
        self.counts = Counts()

    @property
    def images(self) -> int:
        """Images of all running jobs, whatever their stage."""
        return sum(claimed.row.params.n for claimed in self.running.values())

    @property
    def joining(self) -> int:
        """Images of jobs that are claimed and not in the engine yet: their places are taken."""
        return sum(claimed.row.params.n for claimed in self.running.values() if not claimed.joined)

    def begin(self, job: Job, row: TaskRow) -> None:
        """Start the life of a job that was just claimed."""
        claimed = Claimed(job, row, row.claim_token or "")
        self.running[row.id] = claimed
        claimed.task = asyncio.create_task(self._live(claimed), name=f"task {row.id}")

    async def _live(self, claimed: Claimed) -> None:
        with bind(task_id=claimed.row.id):
            try:
                await self._draw(claimed)
            except asyncio.CancelledError:
                if claimed.why is None:
                    raise
                if claimed.task is not None:
                    claimed.task.uncancel()
                await self._stopped(claimed)
            except EngineCrashed as error:
                await self._crashed(claimed, error)
            except WeightsComing as error:
                log.info(error.message, action="weights_coming")
                await self._hand_back(claimed, COMING)
            except AppError as error:
                await self._wrong(claimed, error)
            except Exception as error:  # supervised: a fault of ours must end as a failed task, not as a silent one
                log.exception("a claimed task failed for an unforeseen reason", action="internal_error")
                await self._failed(claimed, internal(error))
            finally:
                self.running.pop(claimed.row.id, None)
                self.changed()

    async def _wrong(self, claimed: Claimed, error: AppError) -> None:
        """It failed; a damaged file that is brought anew costs no attempt, and its task waits for it."""
        if await mends(self.parts, error):
            log.warning(error.message, action="weights_damaged")
            await self._hand_back(claimed, COMING)
            return
        if self.parts.watch is not None:
            await self.parts.watch.failed(error)
        await self._failed(claimed, error)

    async def _draw(self, claimed: Claimed) -> None:
        """The good way: every image drawn, stored, and the row ended."""
        row = claimed.row
        # Nothing began yet: a database that is away here costs time and no attempt.
        order = await self.patiently(lambda: self.parts.order(row))
        claimed.joined = True
        stores: list[asyncio.Task[tuple[ImageRow, float]]] = []
        try:
            async with aclosing(self.parts.drawing.draw(order)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Progress):
                        claimed.progress = max(claimed.progress, min(event.share, 1.0) * 0.95)
                    else:
                        _longest(claimed.seconds, event.seconds)
                        stores.append(asyncio.create_task(self.parts.publish(order, event)))
            self.suspects.discard(row.id)
            self.changed()
            stored = await asyncio.gather(*stores)
        finally:
            for store in stores:
                store.cancel()
        _longest(claimed.seconds, {"post": max((seconds for _, seconds in stored), default=0.0)})
        if (loaded := claimed.seconds.pop(LOADED, None)) is not None:
            self.rates.loaded(row.model, loaded, tier_of(claimed.seconds))
            if self.parts.watch is not None:
                await self.parts.watch.worked([order.model, *order.added])
        # Samples of several tasks share the denoiser: this one's part of the time is its part of the samples.
        part = row.params.n / (row.params.n + self.parts.drawing.running)
        self.rates.drawn(row.params, claimed.seconds.get("denoise", 0.0) * part)
        await self._finished(claimed, State.SUCCEEDED, images=[image for image, _ in stored])

    async def _end(
        self,
        claimed: Claimed,
        state: State,
        *,
        images: Sequence[ImageRow] = (),
        error: dict[str, Any] | None = None,
    ) -> State | None:
        """Write the end and ack; with the claim lost, leave both to whoever has it."""
        claimed.ending = True
        row = claimed.row
        self.suspects.discard(row.id)
        if row.started_at is not None:
            claimed.seconds.setdefault("queue", max(0.0, (row.started_at - row.submitted_at) / 1000))
        timings = {stage: round(value, 4) for stage, value in claimed.seconds.items() if stage != LOADED}
        event = TaskEvent(
            event_id="",
            task_id=row.id,
            event=state.value,
            at=self.parts.clock.now(),
            user_id=row.user_id,
            family=row.family,
            model=row.model,
            worker_id=self.worker_id,
            shape=str(row.params.drawn),
            with_lora=bool(row.params.loras),
            images=len(images),
            steps=row.params.steps * len(images),
            seconds=timings,
            error=None if error is None else str(error.get("code")),
        )
        end = End(row.id, claimed.token, state, event, images=images, error=error, timings=timings)
        reached = await self.finisher.finish(end)
        if reached is None:
            self._lost(claimed)
            return None
        self.counts.done += reached is State.SUCCEEDED
        self.counts.failed += reached is State.FAILED
        log.info("task ended", action="ended", state=reached.value, images=len(images), **timings)
        return reached

    async def _finished(self, claimed: Claimed, state: State, **what: Any) -> State | None:
        reached = await self._end(claimed, state, **what)
        if reached is not None:
            self.backlog.done(claimed.job)
        return reached

    async def _failed(self, claimed: Claimed, error: AppError, company: int = 1) -> None:
        """Act on what is decided: alone, again, with the fallback model, or failed with a dead letter."""
        claimed.ending = True
        row = claimed.row
        self.suspects.discard(row.id)
        fallback = row.params.fallback is not None
        verdict = decide(error, row.attempts, row.max_attempts, fallback=fallback, company=company)
        if isinstance(verdict, Suspect):
            await self._suspect(claimed, company)
            return
        if isinstance(verdict, Park):
            data = {**error.as_dict(), "reason": verdict.reason}
            reached = await self._end(claimed, State.FAILED, error=data)
            if reached is None:
                return
            if reached is State.FAILED:
                await self._park(claimed, error, verdict)
        else:
            instead, delay = None, 0.0
            if isinstance(verdict, FallBack):
                other = row.params.fall_back(verdict.reason)
                instead = (other, estimate(other))
            else:
                delay = verdict.delay_s
            model = instead[0].model if instead else row.model
            log.warning(error.message, action="retry", code=error.code, attempts=row.attempts, delay=delay, model=model)
            facts = self._history(error, row) | ({"next_model": model} if instead else {})
            if not await self.patiently(
                lambda: self.claims.retry(row.id, claimed.token, delay, facts, instead=instead)
            ):
                self._lost(claimed)
                return
        self.backlog.done(claimed.job)

    async def _park(self, claimed: Claimed, error: AppError, verdict: Park) -> None:
        """Tell the dead letters; the row, which is the truth, has ended already."""
        row, tp = claimed.row, claimed.job.receipt.tp
        letter = DeadLetter(
            task_id=row.id,
            topic=tp.topic,
            partition=tp.partition,
            offset=claimed.job.receipt.offset,
            reason=verdict.reason,
            message=error.message,
            at=self.parts.clock.now(),
            attempts=row.attempts,
            history=(*row.history, self._history(error, row)),
        )
        try:
            await self.parts.dead_letter(letter)
        except Unavailable:
            log.warning("dead letter not sent, the row keeps the history", action="dead_letter_skipped")

    def _history(self, error: AppError, row: TaskRow) -> dict[str, Any]:
        return {**error.as_dict(), "attempt": row.attempts, "worker_id": self.worker_id, "at": self.parts.clock.now()}

    async def _crashed(self, claimed: Claimed, error: EngineCrashed) -> None:
        """The engine died. Alone in it: guilty. In company: nobody's attempt counts, each runs alone next."""
        self.counts.crashes += 1
        company = len(error.details.get("suspects", ()))
        if company <= 1:
            self._acquit()
        await self._failed(claimed, error, company)

    async def _suspect(self, claimed: Claimed, company: int) -> None:
        """One of several that the engine died with."""
        log.warning("the engine died, its jobs run alone until one ends", action="suspected", company=company)
        self.suspects.add(claimed.row.id)
        claimed.job.alone = True
        await self._hand_back(claimed)

    def _acquit(self) -> None:
        """The guilty one is known: the others may share the engine again."""
        for task_id in self.suspects:
            job = self.backlog.get(task_id)
            if job is not None:
                job.alone = False
        self.suspects.clear()

    async def _hand_back(self, claimed: Claimed, rest: float = 0.0) -> None:
        """Give the claim up without counting an attempt; the job stays here and may join again, ``rest`` s later."""
        claimed.ending = True
        await self.patiently(lambda: self.claims.hand_back({claimed.row.id: claimed.token}))
        if rest:
            self.backlog.hold(claimed.job, time.monotonic() + rest)
        else:
            self.backlog.wait(claimed.job)

    async def _stopped(self, claimed: Claimed) -> None:
        if claimed.why is Why.CANCEL:
            error = {"code": "cancelled", "message": "cancelled on request", "retryable": False}
            await self._finished(claimed, State.CANCELLED, error=error)
        elif claimed.why is Why.LOST:
            self._lost(claimed)
        # A drain hands all of its jobs back in one statement.

    def _lost(self, claimed: Claimed) -> None:
        """Somebody else has the task, or it has ended: write nothing, look again soon."""
        self.counts.lost += 1
        self.suspects.discard(claimed.row.id)
        log.warning("the claim was lost, its result is dropped", action="claim_lost")
        self.backlog.hold(claimed.job, time.monotonic() + 1.0)

    @staticmethod
    async def patiently(write: Callable[[], Awaitable[Any]]) -> Any:
        """Write (or read) something that must be, while the database may be away."""
        delay = 0.2
        while True:
            try:
                return await write()
            except Unavailable as error:
                log.warning(error.message, action="database_waits")
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY)


def _longest(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Images of one task are drawn together: what the task took is what the longest of them took."""
    for stage, value in more.items():
        total[stage] = max(total.get(stage, 0.0), value)
