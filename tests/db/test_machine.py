"""Random histories of one task: the row only ever moves as :func:`streamapp.db.may` allows, and ends once."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from streamapp.db import ENDED, Claims, Database, Delivery, Produced, State, TaskRow, Tasks, may, open_database, upgrade
from tests.db.support import end, new, shift


class Life:
    """One task and everything that may happen to it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tasks, self.claims, self.delivery = Tasks(database), Claims(database), Delivery(database)
        self.claimed: list[TaskRow] = []
        self.replays = 0

    @property
    def token(self) -> str:
        """The newest claim."""
        return (self.claimed[-1].claim_token or "") if self.claimed else ""

    async def claim(self) -> None:
        self.claimed += await self.claims.claim(["t"], f"w{len(self.claimed)}", 15)

    async def finish(self, state: State) -> None:
        if self.claimed:
            await self.claims.finish([end(self.claimed[-1], state)])

    async def finish_late(self) -> None:
        if len(self.claimed) > 1:
            newer = await self.tasks.get("t")
            assert (await self.claims.finish([end(self.claimed[0])])) == {"t": None}
            assert await self.tasks.get("t") == newer

    async def replay(self) -> None:
        self.replays += await self.tasks.replay("t")


STEPS: dict[str, Callable[[Life], Awaitable[Any]]] = {
    "claim": Life.claim,
    "succeed": lambda life: life.finish(State.SUCCEEDED),
    "fail": lambda life: life.finish(State.FAILED),
    "succeed late": Life.finish_late,
    "renew": lambda life: life.claims.renew({"t": life.token}, 15),
    "beat": lambda life: life.claims.beat({"t": (life.token, 0.5)}),
    "retry": lambda life: life.claims.retry("t", life.token, 5, {"code": "x"}),
    "hand back": lambda life: life.claims.hand_back({"t": life.token}),
    "cancel": lambda life: life.tasks.cancel("t"),
    "expire": lambda life: life.claims.expire(["t"]),
    "overdue": lambda life: life.delivery.expire_overdue(5),
    "requeue": lambda life: life.delivery.requeue(["t"]),
    "produced": lambda life: life.delivery.mark_produced([Produced("t", "sd15_tasks", 0, 1)]),
    "replay": Life.replay,
    "lease passes": lambda life: shift(life.database, "t", lease_until=-20_000),
    "wait passes": lambda life: shift(life.database, "t", not_before=-6_000, produce_at=-6_000),
    "deadline passes": lambda life: shift(life.database, "t", deadline_at=-70_000),
}
ENDINGS = {state.value for state in ENDED}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=25))
def test_a_task_ends_once_per_life(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(f"sqlite+aiosqlite:///{Path(folder) / 'a.db'}", steps))


async def live(url: str, steps: list[str]) -> None:
    """Walk through ``steps`` and check after each."""
    await upgrade(url)
    database = open_database(url)
    life = Life(database)
    await life.tasks.insert(new("t", deadline_ms=60_000, callback_url="http://x/"))
    before = (await life.tasks.watch(["t"]))["t"]
    for step in steps:
        await STEPS[step](life)
        after = (await life.tasks.watch(["t"]))["t"]
        assert after.state is before.state or may(before.state, after.state), (step, before.state, after.state)
        assert after.version > before.version or after == before, (step, before, after)
        before = after
    ended = [orjson.loads(event.body) for event in await life.delivery.events(100)][1:]
    assert {event["event"] for event in ended} <= ENDINGS
    assert len(ended) == life.replays + (before.state in ENDED)
    assert len(await life.delivery.due_callbacks(100, 60)) == len(ended)
    row = await life.tasks.get("t")
    assert row is not None
    assert row.attempts >= 0
    assert (row.ended_at is not None) == (row.state in ENDED)
    assert bool((await life.tasks.images(["t"]))["t"]) == (row.state is State.SUCCEEDED)
    await database.close()
