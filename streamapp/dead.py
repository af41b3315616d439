"""Dead letters and replays.

Where the truth lies: the database. A failed task's facts are in its row, its letter in ``dead_letters`` is written by
the transaction that ends it; a message that nobody could read travels over the ``dead_letters`` topic into the same
table, with its bytes. The topic carries every letter for others to read; nothing is decided from it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from streamapp import topics
from streamapp.broker.admin import TP, Admin
from streamapp.broker.record import Record
from streamapp.db import DeadLetters, State, Tasks
from streamapp.errors import BadMessage, InvalidRequest, Unavailable
from streamapp.records import DeadLetter, TaskMessage, decode
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

log = get_logger(__name__)

#: Records read, and tasks looked at, together.
PAGE = 500
LONGEST_DELAY = 5.0
SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])\Z")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


@dataclass
class Replayed:
    """What a walk over a topic found: messages, then distinct tasks by what became of them, those without one too.

    ``requeued`` (with a dry run: would be), ``succeeded``, ``live`` (queued or running anyway), ``cancelled``,
    ``dropped`` (from the dead letters) and ``missing`` (no row) add up to ``tasks``.
    """

    read: int = 0
    unreadable: int = 0
    tasks: int = 0
    requeued: int = 0
    succeeded: int = 0
    live: int = 0
    cancelled: int = 0
    dropped: int = 0
    missing: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)

    def count(self, outcome: str) -> None:
        """One more task with this outcome."""
        name = {"replayed": "requeued", "queued": "live", "running": "live"}.get(outcome, outcome)
        setattr(self, name, getattr(self, name) + 1)


async def replay_since(
    admin: Admin,
    tasks: Tasks,
    names: Sequence[str],
    since: int,
    *,
    cancelled: bool = False,
    dry_run: bool = False,
    limit: int = 64 * 1024,
) -> Replayed:
    """Read task topics again from ``since`` (ms since 1970) on and queue the tasks that ended without a result.

    Tasks that never had a message, because their weights did not come, are found by when they ended. What the broker
    has deleted by then is not found. Cancelled tasks stay as they are unless ``cancelled``, and what
    was dropped from the dead letters stays dropped. A task
    with several messages is looked at once; one that is queued or running comes to its end anyway.

    Raises:
        Unavailable: broker or database do not answer; what was queued until then stays queued.
        InvalidRequest: a topic does not exist.
    """
    states = {State.FAILED, State.EXPIRED} | ({State.CANCELLED} if cancelled else set())
    starts = await admin.offsets_since(names, since)
    if unknown := sorted(set(names) - {tp.topic for tp in starts}):
        raise InvalidRequest(f"the broker has no topic {unknown[0]}: run `streamapp topics create`", field="topic")
    ends = {tp: end for tp, (_, end) in (await admin.bounds(names)).items()}
    found, seen = Replayed(), set[str]()
    async for page in _pages(admin, starts, ends):
        fresh: list[str] = []
        for record in page:
            found.read += 1
            try:
                message = decode(TaskMessage, record.value, limit=limit)
            except BadMessage:
                found.unreadable += 1
                continue
            if message.task_id not in seen:
                seen.add(message.task_id)
                fresh.append(message.task_id)
        for outcome in (await tasks.replay_many(fresh, states=states, dropped=False, dry_run=dry_run)).values():
            found.tasks += 1
            found.count(str(outcome))
    async for ids in _unproduced(tasks, names, states, since):
        fresh = [task_id for task_id in ids if task_id not in seen]
        for outcome in (await tasks.replay_many(fresh, states=states, dropped=False, dry_run=dry_run)).values():
            found.tasks += 1
            found.count(str(outcome))
    return found


async def _unproduced(
    tasks: Tasks, names: Collection[str], states: Collection[State], since: int
) -> AsyncIterator[list[str]]:
    """Ids of ended tasks that no topic has a message of, and whose message would have gone to one of ``names``."""
    after = ""
    while page := await tasks.unproduced(states, since, after, PAGE):
        yield [task_id for task_id, family, priority in page if topics.topic_for(family, priority) in names]
        after = page[-1][0]


async def _pages(admin: Admin, starts: dict[TP, int], ends: dict[TP, int]) -> AsyncIterator[Collection[Record]]:
    """Every record from ``starts`` up to ``ends``, a page at a time; what is written meanwhile is not waited for."""
    for tp, start in sorted(starts.items()):
        position, end = start, ends.get(tp, start)
        while position < end:
            page = await admin.read(tp.topic, tp.partition, position, PAGE)
            page = [record for record in page if record.offset < end]
            if not page:
                break
            yield page
            position = page[-1].offset + 1


def replay_topics(settings: Settings, asked: Sequence[str] = ()) -> list[str]:
    """The task topics to read: those that were asked for, or all of the families.

    Raises:
        InvalidRequest: one that is not a task topic here.
    """
    known = [name(family) for family in settings.families for name in (topics.task_topic, topics.urgent_topic)]
    for name in asked:
        if name not in known:
            raise InvalidRequest(f"{name[:60]!r} is not a task topic here; known: {', '.join(known)}", field="topic")
    return sorted(set(asked)) or known


def parse_since(text: str, now: float | None = None) -> int:
    """A time as ``2026-11-23T08:30`` (UTC unless it says otherwise), or a span back from now such as ``90m``; in ms.

    Raises:
        InvalidRequest: it is neither.
    """
    span = SPAN.match(text.strip())
    if span:
        return max(0, int(((time.time() if now is None else now) - float(span[1]) * SECONDS[span[2]]) * 1000))
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise InvalidRequest(
            f"since must be a time such as 2026-11-23T08:30:00Z, or a span such as 90m, 2h or 1d, not {text[:40]!r}",
            field="since",
        ) from error
    return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))


async def keep(letters: DeadLetters, letter: DeadLetter, kept_s: float) -> bool:
    """List an unreadable message, patiently while the database is away; whether it was new."""
    delay = 0.2
    while True:
        try:
            return await letters.keep(letter, kept_s)
        except Unavailable as error:
            log.warning(error.message, action="letter_waits")
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_DELAY)


def dropped(counters: dict[str, int], topic: str, error: BadMessage) -> None:
    """Note a record that was dropped because nobody needs it: one of ours is followed by a newer one."""
    name = f"dropped_{topic}"
    counters[name] = counters.get(name, 0) + 1
    log.warning(error.message, action="bad_message", topic=topic, reason=error.details.get("reason"))
