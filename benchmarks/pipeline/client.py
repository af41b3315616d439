"""Clients that submit and take the time; one process, as many connections as asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import aiohttp

from benchmarks.pipeline.sides import Side


def open_session(connections: int) -> aiohttp.ClientSession:
    """A session with so many connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections), timeout=aiohttp.ClientTimeout(total=120)
    )


async def submit(session: aiohttp.ClientSession, side: Side, number: int) -> float:
    """Submit one task; seconds until the answer."""
    began = time.perf_counter()
    async with session.post(side.url + side.path, json=side.body(number)) as answer:
        said: Any = await answer.json()
    seconds = time.perf_counter() - began
    if said.get("code") != 0:
        raise RuntimeError(f"{side.name} answered {said}")
    return seconds


async def submit_all(side: Side, tasks: int, clients: int, first: int = 0) -> list[float]:
    """``clients`` at once submit ``tasks`` together, each the next as soon as it is answered; seconds of each."""
    numbers = iter(range(first, first + tasks))
    async with open_session(clients) as session:

        async def client() -> list[float]:
            return [await submit(session, side, number) for number in numbers]

        answered = await asyncio.gather(*(client() for _ in range(clients)))
    return [seconds for each in answered for seconds in each]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of all lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
