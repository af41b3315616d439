"""Starts, steers and kills the application of :mod:`tests.broker.worker`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from streamapp.broker.admin import Admin, TopicSpec, open_admin
from streamapp.settings import Settings

WITHIN = 45.0
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Broker:
    """A broker with the topics of the test application on it."""

    url: str
    folder: Path
    app_id: str
    partitions: int = 2

    @property
    def jobs(self) -> str:
        """The topic of the messages that are held until acked."""
        return f"{self.app_id}-jobs"

    @property
    def controls(self) -> str:
        """The topic that fills the global table."""
        return f"{self.app_id}-controls"

    def admin(self) -> Admin:
        return open_admin(self.settings)

    @property
    def settings(self) -> Settings:
        return Settings(broker=self.url, data_dir=self.folder)

    def specs(self) -> list[TopicSpec]:
        compact = {"cleanup.policy": "compact"}
        return [
            TopicSpec(self.jobs, self.partitions),
            TopicSpec(self.controls, 1),
            TopicSpec(f"{self.app_id}-counts-changelog", self.partitions, 1, compact),
            TopicSpec(f"{self.app_id}-latest-changelog", 1, 1, compact),
        ]

    async def prepare(self) -> None:
        admin = self.admin()
        await admin.start()
        await admin.create_topics(self.specs())
        await admin.close()

    async def committed(self) -> dict[int, int]:
        """Committed offset of each partition of the jobs. On the embedded broker: while no worker runs."""
        admin = self.admin()
        await admin.start()
        try:
            return {tp.partition: offset for tp, offset in (await admin.committed(self.app_id, [self.jobs])).items()}
        finally:
            await admin.close()

    def worker(self, **options: Any) -> Worker:
        return Worker(self, options)


@dataclass
class Worker:
    """One process of the test application; an async context that kills it at the end."""

    broker: Broker
    options: dict[str, Any]
    got: list[dict[str, Any]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        options = {
            "broker": self.broker.url,
            "folder": str(self.broker.folder),
            "app_id": self.broker.app_id,
            "partitions": self.broker.partitions,
            "jobs": self.broker.jobs,
            "controls": self.broker.controls,
            **self.options,
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.broker.worker", json.dumps(options),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=self._errors,
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, limit=2**26,
        )  # fmt: skip
        self._news = asyncio.Condition()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._listening = asyncio.ensure_future(self._listen())
        if self.options.get("wait", True):
            await self.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        self._errors.close()

    async def ready(self) -> None:
        answer = await self._answer()
        assert answer["kind"] == "ready", answer

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            async with self._news:
                if said["kind"] == "got":
                    self.got.append(said)
                else:
                    self._answers.put_nowait(said)
                self._news.notify_all()
        self._answers.put_nowait({"kind": "ended"})
        async with self._news:
            self._news.notify_all()

    async def _answer(self) -> dict[str, Any]:
        answer = await asyncio.wait_for(self._answers.get(), WITHIN)
        assert answer["kind"] != "ended", f"the worker ended:\n{self.errors()}"
        return answer

    def errors(self) -> str:
        """What the process wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode()

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        await self.begin(do, **arguments)
        answer = await self._answer()
        assert answer["do"] == do, answer
        return answer

    async def send(self, *values: str, partition: int | None = 0, **extra: Any) -> list[list[int]]:
        items = [{"key": f"key-{value}", "value": value, "partition": partition, **extra} for value in values]
        offsets: list[list[int]] = (await self.ask("send", items=items))["offsets"]
        return offsets

    async def receives(self, *values: str) -> list[dict[str, Any]]:
        """Wait until all of these came."""
        async with self._news, asyncio.timeout(WITHIN):
            try:
                await self._news.wait_for(lambda: self._listening.done() or set(values) <= set(self.values))
            except TimeoutError:
                raise AssertionError(
                    f"missing {sorted(set(values) - set(self.values))[:20]}\n{self.errors()}"
                ) from None
        assert set(values) <= set(self.values), self.errors()
        return self.got

    @property
    def values(self) -> list[str]:
        return [said["value"] for said in self.got]

    async def ack(self, *values: str) -> None:
        await self.ask("ack", at=sorted({tuple(said["at"]) for said in self.got if said["value"] in values}))

    async def tables(self) -> dict[str, Any]:
        """Both tables as this worker sees them."""
        answer = await self.ask("tables")
        return {"counts": answer["counts"], "latest": answer["latest"]}

    async def committed(self) -> dict[str, int]:
        """What this worker has committed, by partition."""
        offsets: dict[str, int] = (await self.ask("committed"))["offsets"]
        return offsets

    async def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._listening

    async def stop(self) -> None:
        """Let it end by itself."""
        await self.ask("stop")
        await asyncio.wait_for(self._process.wait(), WITHIN)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    async def begin(self, do: str, **arguments: Any) -> None:
        """Give a command whose answer may never come."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        await self._process.stdin.drain()

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        return await asyncio.wait_for(self._process.wait(), WITHIN)


async def eventually(look: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """Wait until ``look`` returns what is expected."""
    found = None
    try:
        async with asyncio.timeout(WITHIN):
            while (found := await look()) != expected:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{found} never became {expected}") from None
