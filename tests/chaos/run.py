"""The two runs: a fleet on real servers, and one process over the embedded broker."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pymysql

from streamapp.broker.admin import Admin, open_admin
from streamapp.settings import PREFIX, Settings
from streamapp.topics import task_topic, urgent_topic
from tests.chaos.faults import Injector, tail
from tests.chaos.load import submit_all
from tests.chaos.plan import Mix, plan
from tests.chaos.report import figures
from tests.chaos.verdict import (
    ENDED,
    Rows,
    Verdict,
    check_events,
    check_logs,
    check_offsets,
    check_pictures,
    check_tasks,
    judge,
)
from tests.integration.fleet import Fleet, Member
from tests.servers import S3, Kafka, MariaDB

#: Every task has ended this long after the last fault, seconds; drawing itself takes a second or two here.
WITHIN = 60.0
ENV = {
    "STREAMAPP_ENGINE": "fake-process",
    "STREAMAPP_PARTITIONS": "6",
    # Kills land at random: they may hit one task more often than a poison job would be given.
    "STREAMAPP_MAX_ATTEMPTS": "5",
}
#: For a short run; the long one proves the defaults.
QUICK = {
    "STREAMAPP_LEASE": "6",
    "STREAMAPP_LEASE_RENEWAL": "2",
    "STREAMAPP_SESSION_TIMEOUT": "6",
    "STREAMAPP_HEARTBEAT_INTERVAL": "1",
    "STREAMAPP_RECONCILE_INTERVAL": "5",
}
TOPICS = (task_topic("sd15"), urgent_topic("sd15"))


@dataclass
class Watch:
    """What statuses said while a run went on; a counter starts anew with its process, so maxima are added up."""

    redelivered: dict[tuple[str, str], int] = field(default_factory=dict)

    async def look(self, fleet: Fleet, members: list[Member]) -> None:
        """Ask the first member that answers."""
        for member in members:
            try:
                async with fleet.session.get(f"{member.url}/api/v1/status") as answer:
                    for row in (await answer.json())["data"]["workers"]:
                        key = (row["worker_id"], str(row["started_at"]))
                        self.redelivered[key] = max(self.redelivered.get(key, 0), int(row.get("redelivered", 0)))
                return
            except (aiohttp.ClientError, TimeoutError, KeyError):
                continue


async def fleet_run(
    folder: Path, seed: int, tasks: int, workers: int, span: float, mix: Mix, settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Workers and one web process on Kafka, MariaDB and S3 of this run's own."""
    servers = Kafka(folder / "kafka"), MariaDB(folder / "mariadb"), S3(folder / "s3")
    kafka, mariadb, s3 = servers
    try:
        for server in servers:
            await asyncio.to_thread(server.start)
        url = mariadb.create_database()
        env = {
            **ENV, "STREAMAPP_BROKER": kafka.url, "STREAMAPP_DATABASE": url, "STREAMAPP_APP_ID": f"chaos-{seed}",
            "STREAMAPP_DATA_DIR": str(folder / "data"), **s3.environment(s3.create_bucket()), **(settings or {}),
        }  # fmt: skip

        async def rows(query: str) -> list[tuple[Any, ...]]:
            return list(await asyncio.to_thread(mariadb.execute, query, url))

        async with Fleet(env, folder) as fleet:
            for arguments in (("topics", "create"), ("db", "upgrade")):
                code = await asyncio.to_thread(fleet.command(*arguments).wait, 120)
                assert code == 0, tail(folder / f"{'-'.join(arguments)}.log")
            web = fleet.start("web", "web")
            members = [fleet.start("worker", f"worker-{number}") for number in range(workers)]
            await fleet.ready(web, *members, within=180)
            injector = Injector(
                fleet, members, {"broker": kafka, "database": mariadb, "storage": s3},
                lambda number: fleet.start("worker", f"worker-{number}"),
            )  # fmt: skip
            async with admin_of(env) as admin:
                return await story(fleet, web, injector, admin, rows, seed, tasks, span, mix)
    finally:
        for server in servers:
            await asyncio.to_thread(server.close)


async def embedded_run(folder: Path, seed: int, tasks: int, span: float, mix: Mix) -> dict[str, Any]:
    """One process that does everything, killed and started again."""
    env = {**ENV, "STREAMAPP_DATA_DIR": str(folder / "data"), "STREAMAPP_PARTITIONS": "4"}

    async def rows(query: str) -> list[tuple[Any, ...]]:
        def ask() -> list[tuple[Any, ...]]:
            connection = sqlite3.connect(folder / "data" / "streamapp.db", timeout=10)
            try:
                return connection.execute(query).fetchall()
            finally:
                connection.close()

        return await asyncio.to_thread(ask)

    async with Fleet(env, folder) as fleet:
        first = fleet.start("up", "up")
        await fleet.ready(first, within=120)

        def again(_: int) -> Member:
            # The same port: clients know one address.
            return fleet.start("up", "up", STREAMAPP_PORT=str(first.port))

        injector = Injector(fleet, [first], {}, again)
        return await story(fleet, first, injector, None, rows, seed, tasks, span, mix, env=env)


async def story(
    fleet: Fleet, web: Member, injector: Injector, admin: Admin | None, rows: Rows, seed: int, tasks: int,
    span: float, mix: Mix, *, env: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Submit, inject, wait for the ends, judge, stop."""
    watch = Watch()

    async def watching() -> None:
        while True:
            await watch.look(fleet, [web, *injector.workers])
            await asyncio.sleep(0.5)

    watcher = asyncio.create_task(watching())
    faults = plan(seed, mix, span, len(injector.workers))
    load, _ = await asyncio.gather(submit_all(fleet, web, tasks, span, seed, mix.slow), injector.run(faults))
    last = await all_ended(rows, injector)
    watcher.cancel()
    for member in injector.workers:
        assert member.process.poll() is None, f"{member.name} ended by itself:\n{tail(member.log)}"
    await fleet.ready(*injector.workers, within=60)
    if admin is not None:
        verdict = await judge(rows, admin, fleet.env["STREAMAPP_APP_ID"], TOPICS, load.accepted, fleet, web)
        await stopped([web, *injector.workers])
    else:
        verdict = await judged_alone(fleet, injector.workers[0], rows, env or {}, load.accepted)
    verdict.unless(last <= WITHIN, f"the last task ended {last:.0f} s after the last fault")
    check_logs(verdict, [member.log for member in fleet.members])
    return figures(seed, load, injector, verdict, sum(watch.redelivered.values()), last)


async def judged_alone(fleet: Fleet, member: Member, rows: Rows, env: dict[str, str], accepted: dict[str, Any]) -> Any:
    """The embedded broker belongs to its process: its pictures are read first, its log after its end."""
    verdict = Verdict()
    await check_tasks(verdict, rows, accepted)
    await check_pictures(verdict, rows, accepted, fleet, member)
    await asyncio.sleep(3)
    await stopped([member])
    async with admin_of(env) as admin:
        await check_offsets(verdict, admin, "gpu_worker_group", list(TOPICS))
        await check_events(verdict, admin, accepted)
    return verdict


async def all_ended(rows: Rows, injector: Injector) -> float:
    """Wait until no task is alive; seconds after the last fault. A run that gets stuck is judged as it is."""
    names = ", ".join(f"'{state}'" for state in ENDED)
    while True:
        try:
            [(alive,)] = await rows(f"SELECT COUNT(*) FROM tasks WHERE state NOT IN ({names})")
        except (pymysql.MySQLError, sqlite3.Error):
            alive = -1
        since = time.monotonic() - injector.last
        if alive == 0 or since > WITHIN + 5:
            return since
        await asyncio.sleep(0.5)


async def stopped(members: list[Member]) -> None:
    """Everybody leaves when told to."""
    for member in members:
        member.signal(signal.SIGTERM)
    for member in members:
        code = await member.ended(within=60)
        assert code == 0, f"{member.name} ended with {code}:\n{tail(member.log)}"


@asynccontextmanager
async def admin_of(env: dict[str, str]) -> AsyncIterator[Admin]:
    """The broker as the processes of this environment see it."""
    values: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value for name, value in env.items() if name.startswith(PREFIX)
    }
    admin = open_admin(Settings(**values))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()
