"""P12d, P12e: what keeps a worker's loop busy while its engine computes, and a web process with many connections."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import aiohttp
import orjson

from benchmarks.pipeline.client import open_session, quantile, submit, submit_all
from benchmarks.pipeline.figures import Figure
from benchmarks.pipeline.sides import Servers, Side, ours

CONNECTIONS = 2_000
#: Submits per second while so many connections are open.
RATE = 50.0


async def stalls(servers: Servers, rounds: int, tasks: int) -> Figure:
    """P12d: how late the worker's loop comes round while the real engine draws in its child process."""
    worst, seen = [], 0
    for number in range(rounds):
        out = servers.folder / f"probe-{number}.json"
        async with ours(servers, engine="process", PROBE_OUT=str(out)) as side:
            await submit_all(side, 1, 1)
            await side.finished(0.2)
            before = len(orjson.loads(out.read_bytes()))
            await submit_all(side, tasks, 8, first=1)
            await side.finished(0.5)
            await asyncio.sleep(1.5)
            late = orjson.loads(out.read_bytes())[before:]
        seen += len(late)
        worst.append(quantile(late, 0.999))
    return Figure("P12d", worst, {"wake-ups watched": seen, "pictures drawn meanwhile": tasks * rounds})


async def connections(servers: Servers, rounds: int, submits: int) -> Figure:
    """P12e: share of submits that are answered within 100 ms while 2,000 other connections are open."""
    shares, facts = [], {}
    async with ours(servers) as side, AsyncExitStack() as stack:
        idle = await stack.enter_async_context(open_session(CONNECTIONS + 10))
        gate = asyncio.Semaphore(100)

        async def follow() -> None:
            """An open event stream of a task that has not ended: the connection that costs a web process most."""
            async with gate:
                answer = await idle.get(f"{side.url}/healthz")
                await answer.read()
                streams.append(await idle.get(f"{side.url}{waiting}/events"))

        streams: list[aiohttp.ClientResponse] = []
        async with open_session(50) as session:
            body = {**side.body(0), "text": "fake:slow apple", "priority": "P3", "params": {"steps": 150}}
            async with session.post(side.url + side.path, json=body) as answer:
                waiting = str((await answer.json())["data"]["query_url"])
            # Half of them idle after a request, half of them streams.
            await asyncio.gather(*(follow() for _ in range(CONNECTIONS // 2)))
            plain = await stack.enter_async_context(open_session(CONNECTIONS // 2))
            held = await asyncio.gather(*(plain.get(f"{side.url}/healthz") for _ in range(CONNECTIONS // 2)))
            for number in range(rounds):
                seconds = await paced(session, side, submits, number)
                shares.append(sum(one <= 0.1 for one in seconds) / len(seconds))
                facts[f"round {number + 1} p50, p99 (ms)"] = (
                    f"{quantile(seconds, 0.5) * 1000:.1f}, {quantile(seconds, 0.99) * 1000:.1f}"
                )
            for response in (*streams, *held):
                response.close()
    return Figure("P12e", shares, facts)


async def paced(session: aiohttp.ClientSession, side: Side, submits: int, round_: int) -> list[float]:
    """Submit at a steady rate; seconds of each."""
    began = time.perf_counter()

    async def one(number: int) -> float:
        await asyncio.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        return await submit(session, side, 10_000 * (round_ + 1) + number)

    return list(await asyncio.gather(*(one(number) for number in range(submits))))
