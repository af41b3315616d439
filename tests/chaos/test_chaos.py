"""A short run of each kind; ``make chaos`` is the long one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.plan import DOWN, Mix, plan
from tests.chaos.report import table
from tests.chaos.run import QUICK, WITHIN, embedded_run, fleet_run
from tests.servers import S3, Kafka, MariaDB

SEED = 20261123


def passed(facts: dict[str, Any], tasks: int, mix: Mix) -> None:
    print(table(facts))
    assert facts["violations"] == []
    assert sum(facts["ends"].values()) == tasks
    assert set(facts["ends"]) <= {"succeeded", "cancelled"}
    assert facts["faults"] == {kind: count for kind in DOWN if (count := getattr(mix, kind))}
    assert facts["last_end_after_last_fault_s"] <= WITHIN


def test_the_same_seed_is_the_same_plan() -> None:
    assert plan(7, Mix(), 100.0, 3) == plan(7, Mix(), 100.0, 3)
    assert plan(7, Mix(), 100.0, 3) != plan(8, Mix(), 100.0, 3)
    faults = plan(7, Mix(), 100.0, 3)
    assert len(faults) == 17
    assert all(5 <= fault.at <= 95 for fault in faults)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("kafka", "mariadb", "s3")  # for the loud skip where a server cannot be had
async def test_a_fleet_that_loses_everything_once_loses_no_task(
    tmp_path: Path, kafka: Kafka, mariadb: MariaDB, s3: S3
) -> None:
    del kafka, mariadb, s3
    passed(await fleet_run(tmp_path, SEED, 120, 2, 30.0, Mix.short(), QUICK), 120, Mix.short())


@pytest.mark.timeout(180)
async def test_one_process_killed_at_random_loses_no_task(tmp_path: Path) -> None:
    passed(await embedded_run(tmp_path, SEED, 80, 20.0, Mix.alone()), 80, Mix.alone())
