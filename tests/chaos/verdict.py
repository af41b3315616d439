"""What a run must not have done, from the database, the broker and the storage, past the service."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from streamapp.broker.admin import Admin
from streamapp.records import TaskEvent, decode
from streamapp.topics import TASK_EVENTS
from tests.integration.fleet import Fleet, Member

Rows = Callable[[str], Awaitable[list[tuple[Any, ...]]]]
ENDED = ("succeeded", "failed", "cancelled", "expired")
#: Seconds that commits and events may be behind the last end.
SETTLE = 30.0
TERMINAL = frozenset(ENDED)
#: What a worker logs of defects of its own; whatever is killed, none of these may show.
FAULTS = frozenset({"internal_error", "outbox_failed", "beat_failed", "status_failed"})


@dataclass
class Verdict:
    """Violations as sentences, and figures for the table."""

    violations: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    interrupted: int = 0
    lost: int = 0
    longest_stall: float = 0.0
    pictures: int = 0

    def unless(self, fine: bool, violation: str) -> None:
        """Note a violation."""
        if not fine:
            self.violations.append(violation)


async def judge(
    rows: Rows, admin: Admin, group: str, topics: Iterable[str], accepted: Mapping[str, Mapping[str, Any]],
    fleet: Fleet, web: Member,
) -> Verdict:  # fmt: skip
    """Everything that can be said once all tasks have ended."""
    verdict = Verdict()
    await check_tasks(verdict, rows, accepted)
    await check_pictures(verdict, rows, accepted, fleet, web)
    await check_offsets(verdict, admin, group, list(topics))
    await check_events(verdict, admin, accepted)
    return verdict


async def check_tasks(verdict: Verdict, rows: Rows, accepted: Mapping[str, Any]) -> None:
    """Every accepted task is there once and at its end."""
    found = {row[0]: row[1:] for row in await rows("SELECT id, state, attempts, ended_at, submitted_at FROM tasks")}
    verdict.unless(not accepted.keys() - found.keys(), f"{len(accepted.keys() - found.keys())} accepted tasks are gone")
    verdict.unless(not found.keys() - accepted.keys(), "a key made a second task")
    verdict.ends.update(state for state, *_ in found.values())
    wrong = sorted(verdict.ends.keys() & {"failed", "expired"})
    verdict.unless(not wrong, f"tasks ended {' and '.join(wrong)}: {dict(verdict.ends)}")
    idle = [i for i, (state, attempts, *_) in found.items() if state == "succeeded" and attempts < 1]
    verdict.unless(not idle, f"{len(idle)} tasks succeeded without an attempt")
    alive = [task_id for task_id, (state, *_) in found.items() if state not in ENDED]
    verdict.unless(not alive, f"{len(alive)} tasks have not ended: {', '.join(alive[:5])}")
    verdict.repeats = sum(max(0, attempts - 1) for _, attempts, *_ in found.values())
    marks = sorted(row[2] for row in found.values() if row[2] is not None)
    first = min(row[3] for row in found.values())
    verdict.longest_stall = max((b - a for a, b in zip([first, *marks], marks, strict=False)), default=0) / 1000


def check_logs(verdict: Verdict, logs: Iterable[Path]) -> None:
    """Count what workers say they began in vain, and find faults of the service that nobody else would see.

    An engine that dies with several jobs hands them back without counting an attempt: only the log has those.
    """
    for log in sorted(set(logs)):
        for line in log.read_text(errors="replace").splitlines():
            action = line.split()[3] if len(line.split()) > 3 else ""
            verdict.interrupted += action == "suspected"
            verdict.lost += action == "claim_lost"
            verdict.unless(action not in FAULTS, f"{log.name}: {line}")


async def check_pictures(
    verdict: Verdict, rows: Rows, accepted: Mapping[str, Mapping[str, Any]], fleet: Fleet, web: Member
) -> None:
    """Every succeeded task has its pictures, each once, and each is one."""
    found: dict[str, list[int]] = {}
    for task_id, index in await rows("SELECT task_id, idx FROM images"):
        found.setdefault(task_id, []).append(index)
    succeeded = {row[0] for row in await rows("SELECT id FROM tasks WHERE state = 'succeeded'")}
    for task_id in succeeded:
        wanted = list(range(accepted[task_id]["params"]["batch_size"]))
        have = sorted(found.get(task_id, []))
        verdict.unless(have == wanted, f"{task_id} has the pictures {have}, not {wanted}")
    verdict.unless(not found.keys() - succeeded, "a task that did not succeed has pictures")
    gate = asyncio.Semaphore(16)

    async def look(task_id: str) -> None:
        async with gate:
            task = await fleet.task(web, task_id)
            for index in range(len(task["images"])):
                try:
                    data = await fleet.picture(web, task, index)
                    await asyncio.to_thread(Image.open(io.BytesIO(data)).load)
                    verdict.pictures += 1
                except (OSError, AssertionError, aiohttp.ClientError) as error:
                    verdict.violations.append(f"picture {index} of {task_id} cannot be read: {error}")

    await asyncio.gather(*(look(task_id) for task_id in sorted(succeeded)))


async def check_offsets(verdict: Verdict, admin: Admin, group: str, topics: list[str]) -> None:
    """Committed offsets reach the end of every task topic."""
    behind: dict[str, tuple[int, int]] = {}
    for _ in range(int(SETTLE)):
        committed, bounds = await admin.committed(group, topics), await admin.bounds(topics)
        behind = {
            f"{tp.topic}-{tp.partition}": (committed.get(tp, 0), end)
            for tp, (_, end) in bounds.items()
            if end > committed.get(tp, 0)
        }
        if not behind:
            return
        await asyncio.sleep(1)
    verdict.violations.append(f"commits are behind: {behind}")


async def check_events(verdict: Verdict, admin: Admin, accepted: Mapping[str, Any]) -> None:
    """``task_events`` tells of one end for each task; the same event may be told twice, under its id."""
    missing: set[str] = set(accepted)
    for _ in range(int(SETTLE)):
        told = await ends_told(admin, accepted)
        twice = {task_id: ids for task_id, ids in told.items() if len(ids) > 1}
        verdict.unless(not twice, f"{len(twice)} tasks ended twice on task_events: {list(twice.items())[:3]}")
        missing = set(accepted) - told.keys()
        if twice or not missing:
            return
        await asyncio.sleep(1)
    verdict.violations.append(f"task_events tells no end of {len(missing)} tasks: {sorted(missing)[:3]}")


async def ends_told(admin: Admin, accepted: Mapping[str, Any]) -> dict[str, set[str]]:
    """Ids of the terminal events, by task."""
    told: dict[str, set[str]] = {}
    for tp, (start, end) in (await admin.bounds([TASK_EVENTS])).items():
        at = start
        while at < end:
            records = await admin.read(TASK_EVENTS, tp.partition, at, 500)
            if not records:
                break
            at = records[-1].offset + 1
            for record in records:
                event = decode(TaskEvent, record.value)
                if event.task_id in accepted and event.event in TERMINAL:
                    told.setdefault(event.task_id, set()).add(event.event_id)
    return told
