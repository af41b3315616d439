"""Pulls the plugs of a plan, and puts them back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.plan import Fault, Kind
from tests.integration.fleet import Fleet, Member, children_of_session, kill
from tests.servers import Server


@dataclass
class Injector:
    """The victims of a run.

    ``start`` starts worker number ``n`` anew; ``killed`` is called before each kill with the moment's observations.
    """

    fleet: Fleet
    workers: list[Member]
    servers: dict[Kind, Server]
    start: Callable[[int], Member]
    done: Counter[str] = field(default_factory=Counter)
    last: float = 0.0
    _busy: dict[object, asyncio.Lock] = field(default_factory=dict)

    async def run(self, faults: list[Fault]) -> None:
        """Inject everything; returns when the last victim is up again (or was told to be)."""
        began = time.monotonic()

        async def one(fault: Fault) -> None:
            await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
            victim = fault.victim if fault.kind in {"worker", "engine", "stall"} else fault.kind
            # Two faults of one victim follow each other.
            async with self._busy.setdefault(victim, asyncio.Lock()):
                await getattr(self, f"_{fault.kind}")(fault)
            self.done[fault.kind] += 1
            self.last = time.monotonic()

        await asyncio.gather(*(one(fault) for fault in faults))

    async def _worker(self, fault: Fault) -> None:
        member = self.workers[fault.victim]
        kill(member)
        await member.ended(within=20)
        await asyncio.sleep(fault.down)
        self.workers[fault.victim] = self.start(fault.victim)

    async def _engine(self, fault: Fault) -> None:
        """Kill the engine child; its worker notices and starts another."""
        member = self.workers[fault.victim]
        end = time.monotonic() + 60
        while not (children := engines(member)):
            assert time.monotonic() < end, f"{member.name} has no engine child to kill:\n{tail(member.log)}"
            await asyncio.sleep(0.1)
        with suppress(ProcessLookupError):
            os.kill(children[0], signal.SIGKILL)

    async def _stall(self, fault: Fault) -> None:
        """Stop a worker for longer than its lease: others take its jobs, and it comes back with old claims."""
        member = self.workers[fault.victim]
        os.kill(member.process.pid, signal.SIGSTOP)
        await asyncio.sleep(fault.down)
        os.kill(member.process.pid, signal.SIGCONT)

    async def _server(self, fault: Fault) -> None:
        server = self.servers[fault.kind]
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(fault.down)
        await asyncio.to_thread(server.start)

    _broker = _database = _storage = _server


def engines(member: Member) -> list[int]:
    """Engine children of a worker."""
    found = []
    for process in children_of_session(member.process.pid):
        with suppress(OSError):
            if b"streamapp.engine.child" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def tail(log: Path, lines: int = 30) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
