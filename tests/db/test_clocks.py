"""Hosts disagree about the time: leases, deadlines and ids go by the database's clock alone."""

from __future__ import annotations

import time

import pytest

from streamapp.clock import Clock
from streamapp.db import Claims, Database, State, Tasks
from tests.db.support import claim, new

DAY = 86_400.0


@pytest.mark.parametrize("skew", [-DAY, DAY])
async def test_a_host_whose_clock_is_a_day_off_claims_and_keeps_like_any_other(
    skew: float, database: Database, tasks: Tasks, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + skew)
    await tasks.insert(new("t1", deadline_ms=60_000))
    [row] = await claim(claims, "t1", worker="skewed", lease_s=30)
    assert await claims.claim(["t1"], "other", 30) == [], "the lease holds, whatever the host believes"
    assert await claims.expire(["t1"]) == set(), "the deadline has not passed"
    assert await claims.renew({"t1": row.claim_token or ""}, 30) == set()
    held = (await claims.glimpse(["t1"]))["t1"]
    assert held.state is State.RUNNING
    assert 20_000 < held.lease_ms <= 30_000
    assert abs(row.submitted_at - true() * 1000) < 60_000


async def test_the_clock_of_a_skewed_host_is_the_databases(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + DAY)
    clock = Clock(database.now)
    await clock.sync()
    assert abs(clock.now() - await database.now()) < 5_000
