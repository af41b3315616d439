"""P13a, P13b: what a million waiting tasks cost the next one, and a worker's memory."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiokafka import AIOKafkaProducer

from benchmarks.pipeline.client import open_session, submit
from benchmarks.pipeline.figures import Figure
from benchmarks.pipeline.sides import Servers, Side, free_port, ours, servers_at, start
from streamapp.broker.record import TP
from streamapp.generation import GenerationParams, Size
from streamapp.records import TaskMessage
from streamapp.settings import Settings
from streamapp.topics import task_topic
from streamapp.worker.backlog import Backlog, Receipt

FEW = 1_000
#: A worker that has taken what it takes holds still for this long, seconds.
STILL = 5.0
WITHIN = 300.0


async def cost(servers: Servers, rounds: int, many: int) -> Figure:
    """P13a: the worst ratio of a submit, of intake and of a scheduling step; intake and step in this process.

    A worker never holds more than its look-ahead: at a million queued the rest is on the broker.
    """
    submits = []
    async with ours(servers, workers=0, STREAMAPP_MAX_QUEUED=str(4 * many)) as few:
        await fill(few, FEW)
        async with ours(servers, workers=0, STREAMAPP_MAX_QUEUED=str(4 * many)) as much:
            await fill(much, many)
            for number in range(rounds):
                pair = [await submitting(side, number) for side in (few, much)]
                submits.append(pair[1] / pair[0])
    held = min(many, Settings().lookahead)
    inside = [steps(held) for _ in range(rounds)]
    intake, step = ([one[key] for one in inside] for key in ("intake", "step"))
    parts = {"submit": submits, "intake": intake, "scheduling step": step}
    worst = [max(values) for values in zip(*parts.values(), strict=True)]
    facts = {f"{name} (x)": round(statistics.median(values), 3) for name, values in parts.items()}
    return Figure("P13a", worst, {**facts, "queued": many, "held by a worker": held})


async def fill(side: Side, tasks: int) -> None:
    """Rows that wait, made from one that was submitted; it takes the fake engine 15 s, so that a Backlog stays full."""
    slow = {"text": "fake:slow apple", "params": {"resolution": "104x104", "steps": 150}}
    async with open_session(1) as session, session.post(side.url + side.path, json=slow) as answer:
        answer.raise_for_status()
    columns = [row[0] for row in await side.rows("SHOW COLUMNS FROM tasks")]
    other = {
        "id": "CONCAT('img-20261123-b', LPAD(s.seq, 12, '0'))",
        "produce_at": "NULL",
        "topic": f"'{task_topic('sd15')}'",
        "partition": "0",
        "offset": "s.seq",
        "submitted_at": "t.submitted_at + s.seq",
    }
    names = ", ".join(f"`{column}`" for column in columns)
    values = ", ".join(other.get(column, f"t.`{column}`") for column in columns)
    await side.rows("CREATE TABLE seed AS SELECT * FROM tasks LIMIT 1")
    for first in range(1, tasks + 1, 100_000):
        last = min(tasks, first + 99_999)
        await side.rows(f"INSERT INTO tasks ({names}) SELECT {values} FROM seed t, seq_{first}_to_{last} s")  # noqa: S608
    await side.rows("ANALYZE TABLE tasks")


async def submitting(side: Side, round_: int) -> float:
    """Median seconds of a submit, one after another."""
    async with open_session(1) as session:
        return statistics.median([await submit(session, side, 1 + round_ * 100 + number) for number in range(100)])


def steps(held: int) -> dict[str, float]:
    """Cost of taking a job in, and of choosing, starting and ending one, with ``held`` jobs over with few."""
    took = {size: _steps(size) for size in (FEW, held)}
    return {part: took[held][part] / took[FEW][part] for part in ("intake", "step")}


def _steps(size: int, times: int = 500) -> dict[str, float]:
    backlog = Backlog(size + times)
    for number in range(size):
        _add(backlog, number)
    gc.collect()
    gc.disable()
    try:
        fresh = range(size, size + times)
        intake = _timed(lambda number: _add(backlog, number), fresh)
        step = _timed(lambda _: _turn(backlog), range(times))
    finally:
        gc.enable()
    return {"intake": intake, "step": step}


def _timed(work: Callable[[int], object], numbers: range) -> float:
    """Median seconds of one call."""
    took = []
    for number in numbers:
        began = time.perf_counter()
        work(number)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _add(backlog: Backlog, number: int) -> None:
    message = TaskMessage.model_validate(_message(number))
    backlog.add(message, Receipt(TP("sd15_tasks", 0), number, lambda: None), 0.0)


def _turn(backlog: Backlog) -> None:
    ticket = backlog.waiting.next(1.0)
    assert ticket is not None
    job = backlog.get(ticket.task_id)
    assert job is not None
    backlog.start(job, 1.0)
    backlog.done(job)


def _message(number: int) -> dict[str, Any]:
    small = Size(width=104, height=104)
    params = GenerationParams(
        text="fake:slow apple", prompt="fake:slow apple", model="pocket", family="sd15", delivered=small, drawn=small,
        steps=150, guidance=3.0, sampler="DDIM", seed=number,
    )  # fmt: skip
    return {
        "task_id": f"img-20261123-b{number:012}", "user_id": f"user-{number % 50}", "family": "sd15", "model": "pocket",
        "priority": 2, "cost": 1.0, "submitted_at": number, "params": params,
    }  # fmt: skip


async def memory(folder: Path, rounds: int, many: int) -> Figure:
    """P13b: resident memory of a worker that took in what it takes, with so many messages on its topic and rows."""
    ratios: list[float] = []
    held: dict[str, float] = {}
    for number in range(rounds):
        sizes = {}
        for tasks in (FEW, many):
            async with servers_at(folder / f"memory-{number}-{tasks}") as servers:
                sizes[tasks], held[f"jobs held at {tasks:,}"] = await resident(servers, tasks)
        ratios.append(sizes[many] / sizes[FEW])
        held |= {f"worker at {tasks:,} (MB)": round(size / 1e6, 1) for tasks, size in sizes.items()}
    return Figure("P13b", ratios, held)


async def resident(servers: Servers, tasks: int) -> tuple[int, int]:
    """Bytes of the worker's process, engine child excluded, once it holds still; jobs that it holds then."""
    async with ours(servers, workers=0, engine="fake-process", STREAMAPP_MAX_QUEUED=str(4 * tasks)) as side:
        await fill(side, tasks)
        await produce(servers, tasks)
        start(side, ["-m", "streamapp", "worker"], STREAMAPP_PORT=str(free_port()), STREAMAPP_WORKER_ID="deep")
        worker = side.processes[-1]
        end = time.monotonic() + WITHIN
        jobs, since = 0, time.monotonic()
        async with open_session(1) as session:
            while time.monotonic() < end and not (jobs and time.monotonic() - since > STILL):
                await asyncio.sleep(0.5)
                now = await jobs_held(session, side)
                # What is drawn meanwhile is replaced from the broker: a few more or less are no change.
                if abs(now - jobs) > max(50, jobs // 100):
                    jobs, since = now, time.monotonic()
        used = psutil.Process(worker.pid).memory_info().rss
        worker.kill()  # a drain of slow pictures would take minutes
        return int(used), jobs


async def jobs_held(session: aiohttp.ClientSession, side: Side) -> int:
    """Jobs in the worker's Backlog, as its last status says."""
    async with session.get(f"{side.url}/api/v1/status") as answer:
        workers = (await answer.json())["data"]["workers"]
    return sum(int(row["jobs"]) for row in workers if row["worker_id"] == "deep")


async def produce(servers: Servers, tasks: int) -> None:
    """A message for each filled row, on the topic of ordinary work."""
    topic = task_topic("sd15")
    producer = AIOKafkaProducer(bootstrap_servers=servers.kafka.bootstrap, acks=1, linger_ms=20, max_batch_size=2**20)
    await producer.start()
    try:
        partitions = len(await producer.partitions_for(topic))
        for first in range(1, tasks + 1, 5_000):
            sent = [
                await producer.send(topic, message.encode(), message.task_id.encode(), partition=number % partitions)
                for number in range(first, min(tasks, first + 4_999) + 1)
                if (message := TaskMessage.model_validate(_message(number)))
            ]
            await asyncio.gather(*sent)
    finally:
        await producer.stop()
