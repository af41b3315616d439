"""P12a, P12b, P12c: the service against the plain recipe, leg by leg on the same servers."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.pipeline.client import open_session, quantile, submit_all
from benchmarks.pipeline.figures import Figure
from benchmarks.pipeline.marks import EVERY, read
from benchmarks.pipeline.sides import Servers, Side, ours, plain

#: Clients that submit while the whole path is measured.
CLIENTS = 50
#: Seconds of rest before and after a lone task is asked for.
REST = 0.2


async def throughput(servers: Servers, rounds: int, tasks: int) -> Figure:
    """P12a: tasks per second from the first submit to the last end."""
    async with ours(servers) as one, plain(servers) as other:
        for side in (one, other):
            await leg(side, max(50, tasks // 10))
        ratios: list[float] = []
        speeds: dict[str, list[float]] = {one.name: [], other.name: []}
        for _ in range(rounds):
            for side in (one, other):
                speeds[side.name].append(await leg(side, tasks))
            ratios.append(speeds["ours"][-1] / speeds["plain"][-1])
    facts = {f"{name} (tasks/s)": round(statistics.median(all_), 1) for name, all_ in speeds.items()}
    return Figure("P12a", ratios, facts)


async def leg(side: Side, tasks: int) -> float:
    """Tasks per second of one side alone."""
    await side.clear()
    began = time.perf_counter()
    await submit_all(side, tasks, CLIENTS)
    await side.finished(0.05)
    seconds = time.perf_counter() - began
    [(done,)] = await side.rows(f"SELECT COUNT(*) FROM {side.table}")  # noqa: S608 - a constant
    if done != tasks:
        raise RuntimeError(f"{side.name} has {done} of {tasks} tasks")
    return tasks / seconds


async def submits(servers: Servers, rounds: int, tasks: int) -> Figure:
    """P12b: the slowest hundredth of submits while 200 clients send theirs; workers draw meanwhile."""
    ratios: list[float] = []
    slowest: dict[str, list[float]] = {"ours": [], "plain": []}
    async with ours(servers) as one, plain(servers) as other:
        for side in (one, other):
            await submit_all(side, 200, 200)
        for number in range(rounds):
            for side in (one, other):
                seconds = await submit_all(side, tasks, 200, first=1000 * (number + 1))
                slowest[side.name].append(quantile(seconds, 0.99) * 1000)
                await side.finished(0.1)
            ratios.append(slowest["ours"][-1] / slowest["plain"][-1])
    facts = {f"{name} p99 (ms)": round(statistics.median(all_), 1) for name, all_ in slowest.items()}
    return Figure("P12b", ratios, facts)


async def lone(servers: Servers, rounds: int, tasks: int) -> Figure:
    """P12c: from the durable row to the engine's begin, one task after another with nothing else to do."""
    delays: dict[str, list[float]] = {"ours": [], "plain": []}
    asked: dict[str, list[float]] = {"ours": [], "plain": []}
    ratios = []
    async with ours(servers) as one, plain(servers) as other:
        for number in range(rounds):
            for side in (one, other):
                delay, whole = await alone(side, tasks, number)
                delays[side.name].append(delay)
                asked[side.name].append(whole)
            ratios.append(delays["ours"][-1] / max(delays["plain"][-1], 0.1))
    facts = {f"{name} (ms)": round(statistics.median(all_), 1) for name, all_ in delays.items()}
    for name, all_ in asked.items():
        facts[f"{name}, from the client's request on (ms)"] = round(statistics.median(all_), 1)
    return Figure("P12c", ratios, facts)


async def alone(side: Side, tasks: int, round_: int) -> tuple[float, float]:
    """Lone tasks, median milliseconds until the engine begins: from the durable row, and from the client's request."""
    await side.clear()
    asked: dict[str, float] = {}
    async with open_session(1) as session:
        for number in range(tasks):
            at = time.time()
            async with session.post(side.url + side.path, json=side.body(round_ * tasks + number)) as answer:
                asked[(await answer.json())["data"]["task_id"]] = at
            # Neither questions about it nor the last one's events and statistics run beside a lone task.
            await asyncio.sleep(REST)
            await side.finished()
            await asyncio.sleep(REST)
    await asyncio.sleep(2 * EVERY)
    noted = read(side.marks)
    begun = {task_id: noted["begun"][task_id] for task_id in asked}
    delays = [begun[task_id] - noted["queued"][task_id] for task_id in asked]
    whole = [begun[task_id] - at for task_id, at in asked.items()]
    return statistics.median(delays) * 1000, statistics.median(whole) * 1000
