"""Starts, watches, stops and kills the service's own processes the way an operator does."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Any, Self

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
#: Of the task topics on the Kafka that all tests of a session share: a topic exists once, with one number.
PARTITIONS = "8"


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(
    condition: Callable[[], Awaitable[Any]], *, within: float, what: str, every: float = 0.1, log: Path | None = None
) -> Any:
    """Wait until ``condition`` answers something true, and answer it; fail saying what never came."""
    end = time.monotonic() + within
    while True:
        answer = await condition()
        if answer:
            return answer
        if time.monotonic() > end:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:]) if log else ""
            raise AssertionError(f"not within {within} s: {what}\n{tail}")
        await asyncio.sleep(every)


@dataclass
class Member:
    """One running process of the fleet."""

    role: str
    name: str
    port: int
    log: Path
    process: Popen[bytes]

    @property
    def url(self) -> str:
        """Base address of its views."""
        return f"http://127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        """Send a signal to this process only."""
        self.process.send_signal(number)

    async def ended(self, within: float) -> int:
        """Its exit code, once it has ended."""

        async def gone() -> bool:
            return self.process.poll() is not None

        await until(gone, within=within, what=f"{self.name} ends", log=self.log)
        return int(self.process.returncode)


@dataclass
class Fleet:
    """All members that share one environment; everything still alive is killed at the end."""

    env: Mapping[str, str]
    folder: Path
    members: list[Member] = field(default_factory=list)
    session: aiohttp.ClientSession = field(init=False)

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        for member in self.members:
            if member.process.poll() is None:
                member.process.kill()
            member.process.wait(10)
            print(f"\n{member.name} ended with {member.process.returncode}; it said last:")
            print("\n".join(member.log.read_text(errors="replace").splitlines()[-60:]))

    def command(self, *arguments: str, **env: str) -> Popen[bytes]:
        """One finishing command of the CLI with the fleet's environment."""
        log = self.folder / f"{'-'.join(arguments[:2])}.log"
        with log.open("ab") as out:
            return Popen(
                [sys.executable, "-m", "streamapp", *arguments],
                cwd=ROOT,
                env={**self.base(), **env},
                stdout=out,
                stderr=STDOUT,
            )

    def base(self) -> dict[str, str]:
        """The environment of every member: nothing of the caller's settings leaks in."""
        kept: dict[str, str] = {
            key: value for key, value in os.environ.items() if not key.startswith(("STREAMAPP_", "AWS_"))
        }
        return {**kept, "OMP_NUM_THREADS": "1", **self.env}

    def start(self, role: str, name: str, **env: str) -> Member:
        """Start a member; it gets its own port, unless one is given, and, in an own session, its own engine child."""
        port = int(env.get("STREAMAPP_PORT") or free_port())
        log = self.folder / f"{name}.log"
        own = {"STREAMAPP_PORT": str(port), "STREAMAPP_WORKER_ID": name, **env}
        with log.open("ab") as out:
            process = Popen(
                [sys.executable, "-m", "streamapp", role],
                cwd=ROOT,
                env={**self.base(), **own},
                stdout=out,
                stderr=STDOUT,
                start_new_session=True,
            )
        member = Member(role, name, port, log, process)
        self.members.append(member)
        return member

    async def ready(self, *members: Member, within: float = 120) -> None:
        """Wait until ``/readyz`` of each says so."""
        for member in members:
            said = "nothing"

            async def answers(member: Member = member) -> bool:
                nonlocal said
                assert member.process.poll() is None, (
                    f"{member.name} ended with {member.process.returncode}:\n" + member.log.read_text()[-4000:]
                )
                try:
                    async with self.session.get(f"{member.url}/readyz") as answer:
                        said = await answer.text()
                        return answer.status == 200
                except (aiohttp.ClientError, TimeoutError):
                    return False

            try:
                await until(answers, within=within, what=f"{member.name} is ready", log=member.log, every=0.3)
            except AssertionError as error:
                error.add_note(f"/readyz said last: {said}")
                raise

    async def json(self, method: str, url: str, body: Any = None, status: int | None = None) -> Any:
        """One HTTP call; the JSON it answers with."""
        async with self.session.request(method, url, json=body) as answer:
            data = await answer.json()
            assert status is None or answer.status == status, (answer.status, data)
            return data

    async def submit(self, web: Member, text: str, **params: Any) -> str:
        """Submit one task through the API; its id."""
        top: dict[str, Any] = {key: params.pop(key) for key in ("priority", "idempotency_key") if key in params}
        body: dict[str, Any] = {"text": text, "params": params, **top}
        answer = await self.json("POST", f"{web.url}/api/v1/image/generate", body)
        assert answer["code"] == 0, answer
        return str(answer["data"]["task_id"])

    async def task(self, web: Member, task_id: str) -> dict[str, Any]:
        """A task as the API shows it."""
        data: dict[str, Any] = (await self.json("GET", f"{web.url}/api/v1/image/task/{task_id}"))["data"]
        return data

    async def finished(self, web: Member, ids: list[str], within: float) -> dict[str, dict[str, Any]]:
        """Wait until every task is at its end; the tasks by id."""
        ended: dict[str, dict[str, Any]] = {}

        async def all_ended() -> bool:
            for task_id in ids:
                if task_id not in ended:
                    task = await self.task(web, task_id)
                    if task["status"] in {"succeeded", "failed", "cancelled", "expired"}:
                        ended[task_id] = task
            return len(ended) == len(ids)

        await until(all_ended, within=within, what=f"{len(ids)} tasks end", every=0.5, log=web.log)
        return ended

    async def picture(self, web: Member, task: dict[str, Any], index: int = 0) -> bytes:
        """The bytes of one picture, through the address the API gives."""
        url = task["images"][index]["url"]
        async with self.session.get(url if url.startswith("http") else web.url + url) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()


def kill(member: Member) -> None:
    """Pull the plug on one member: no handler runs, its engine child must notice by itself."""
    os.kill(member.process.pid, signal.SIGKILL)


def children_of_session(session: int) -> list[int]:
    """Live processes of a session (each member was started in its own)."""
    alive = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                alive.append(int(entry.name))
    return alive
