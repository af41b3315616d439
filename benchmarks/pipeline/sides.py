"""The two sides on the same Kafka and MariaDB: the service and the plain recipe, a web process and a worker each."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.pipeline.plain import TOPIC
from tests.servers import Kafka, MariaDB

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN = 120.0
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own below it


@dataclass(frozen=True)
class Servers:
    """Kafka and MariaDB of one run, and where everything else of it lies."""

    kafka: Kafka
    mariadb: MariaDB
    folder: Path


@dataclass
class Side:
    """A running side: where to submit, what to send, and how to ask its database."""

    name: str
    url: str
    path: str
    database: str
    servers: Servers
    env: Mapping[str, str]
    marks: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def table(self) -> str:
        """Its table of tasks."""
        return "tasks" if self.name == "ours" else "plain_tasks"

    def body(self, number: int) -> dict[str, Any]:
        """A request; both sides get the same one."""
        return {"text": f"a red apple {number}", "params": {"resolution": "104x104", "steps": 4, "seed": number}}

    async def rows(self, query: str) -> Sequence[Any]:
        """What its database says."""
        return await asyncio.to_thread(self.servers.mariadb.execute, query, self.database)

    async def unfinished(self) -> int:
        """Tasks that have not succeeded."""
        return int((await self.rows(f"SELECT COUNT(*) FROM {self.table} WHERE state <> 'succeeded'"))[0][0])  # noqa: S608

    async def finished(self, every: float = 0.05) -> None:
        """Wait until every task has succeeded."""
        while await self.unfinished():  # noqa: ASYNC110 - another process changes the rows
            await asyncio.sleep(every)

    async def clear(self) -> None:
        """Forget all tasks."""
        for table in ("images", "outbox", "tasks") if self.name == "ours" else (self.table,):
            await self.rows(f"DELETE FROM {table}")  # noqa: S608 - constants


@asynccontextmanager
async def servers_at(folder: Path) -> AsyncIterator[Servers]:
    """Kafka and MariaDB of this run's own."""
    kafka, mariadb = Kafka(folder / "kafka"), MariaDB(folder / "mariadb")
    try:
        await asyncio.to_thread(kafka.start)
        await asyncio.to_thread(mariadb.start)
        yield Servers(kafka, mariadb, folder)
    finally:
        for server in (kafka, mariadb):
            await asyncio.to_thread(server.close)


@asynccontextmanager
async def ours(servers: Servers, *, workers: int = 1, engine: str = "fake", **settings: str) -> AsyncIterator[Side]:
    """The service with an engine that costs nothing.

    Its pictures, of which the plain recipe has none, are encoded and stored, in memory where the system has such a
    file system: how fast a disk syncs is not what is compared here.
    """
    database = await asyncio.to_thread(servers.mariadb.create_database)
    folder = servers.folder / f"data-{time.monotonic_ns()}"
    memory = MEMORY if await asyncio.to_thread(MEMORY.is_dir) else servers.folder
    pictures = Path(tempfile.mkdtemp(prefix="streamapp-bench-", dir=memory))
    port = free_port()
    env = {
        **own_environment(),
        "STREAMAPP_BROKER": servers.kafka.url,
        "STREAMAPP_DATABASE": database,
        # One group for all legs: what an earlier one sent was acked by it.
        "STREAMAPP_APP_ID": "bench",
        "STREAMAPP_DATA_DIR": str(folder),
        "STREAMAPP_STORAGE": f"file://{pictures}",
        "STREAMAPP_ENGINE": engine,
        "STREAMAPP_PARTITIONS": "4",
        # An engine that costs nothing takes whatever it gets.
        "STREAMAPP_MAX_BATCH_ROWS": "256",
        "STREAMAPP_LOG_LEVEL": "warning",
        "BENCH_MARKS": str(folder / "marks"),
        **settings,
    }
    url = f"http://127.0.0.1:{port}"
    side = Side("ours", url, "/api/v1/image/generate", database, servers, env, folder / "marks")
    side.marks.mkdir(parents=True, exist_ok=True)
    for arguments in (["db", "upgrade"], ["topics", "create"]):
        command = [sys.executable, "-m", "streamapp", *arguments]
        await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
    try:
        probed = ["-m", "benchmarks.pipeline.probed"]
        start(side, [*probed, "web"], STREAMAPP_PORT=str(port), STREAMAPP_WORKER_ID="web")
        ports = [free_port() for _ in range(workers)]
        for number, own in enumerate(ports):
            start(side, [*probed, "worker"], STREAMAPP_PORT=str(own), STREAMAPP_WORKER_ID=f"worker-{number}")
        for one in (port, *ports):
            await answers(f"http://127.0.0.1:{one}/readyz")
        yield side
    finally:
        await stop(side)
        await asyncio.to_thread(shutil.rmtree, pictures, True)


@asynccontextmanager
async def plain(servers: Servers) -> AsyncIterator[Side]:
    """The plain recipe."""
    database = await asyncio.to_thread(servers.mariadb.create_database)
    with suppress(Exception):  # it is there from an earlier leg
        await asyncio.to_thread(
            servers.kafka.tool, "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", servers.kafka.bootstrap,
            "--create", "--topic", TOPIC, "--partitions", "4",
        )  # fmt: skip
    port = free_port()
    noted = servers.folder / f"plain-{time.monotonic_ns()}"
    noted.mkdir(parents=True)
    env = {
        **own_environment(),
        "PLAIN_KAFKA": servers.kafka.bootstrap,
        "PLAIN_MYSQL": database,
        "BENCH_MARKS": str(noted),
    }
    side = Side("plain", f"http://127.0.0.1:{port}", "/generate", database, servers, env, noted)
    try:
        start(side, ["-m", "benchmarks.pipeline.plain", "web", "--port", str(port)])
        await answers(f"{side.url}/readyz")
        start(side, ["-m", "benchmarks.pipeline.plain", "worker"])
        yield side
    finally:
        await stop(side)


def start(side: Side, arguments: Sequence[str], **env: str) -> None:
    """Start a process of a side; its log lies in the run's folder."""
    log = side.servers.folder / f"{side.name}.log"
    with log.open("ab") as out:
        side.processes.append(
            subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env={**side.env, **env}, stdout=out, stderr=subprocess.STDOUT
            )
        )


async def stop(side: Side) -> None:
    """SIGTERM to all; a process that does not leave is killed."""
    for process in side.processes:
        process.send_signal(signal.SIGTERM)
    for process in side.processes:
        try:
            await asyncio.to_thread(process.wait, 60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def answers(url: str) -> None:
    """Wait until an address answers 200."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(READY_WITHIN):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


def own_environment() -> dict[str, str]:
    """This process's environment without the caller's settings; one thread for numeric libraries."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("STREAMAPP_", "AWS_"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
