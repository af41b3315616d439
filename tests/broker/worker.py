"""A small Faust application that a test steers over its standard input; run with ``python -m tests.broker.worker``.

It reports as JSON lines: ``ready``, ``got`` for every event of its first topic (which it holds until told to ack),
``done`` for every command.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import faust
from faust.transport.consumer import Consumer as FaustConsumer
from faust.types import TP

from streamapp.broker.commit import CommitRule

OPTIONS = json.loads(sys.argv[1])


class Seen(faust.Record):
    """The last value of a key, as the global table keeps it."""

    value: str


def create() -> faust.App:
    app = faust.App(
        OPTIONS["app_id"],
        broker=OPTIONS["broker"],
        store="memory://",
        web_enabled=False,
        datadir=OPTIONS["folder"],
        key_serializer="raw",
        value_serializer="raw",
        broker_commit_interval=0.2,
        broker_max_poll_records=OPTIONS.get("poll", 100),
        stream_buffer_maxsize=10_000,
        stream_wait_empty=False,
        table_standby_replicas=0,
        topic_disable_leader=True,
        topic_allow_declare=False,
        broker_session_timeout=6,
        broker_heartbeat_interval=1,
        producer_request_timeout=20,
    )
    app.embedded_log_path = Path(OPTIONS["folder"]) / "broker.db"  # type: ignore[attr-defined]
    return app


class Steered:
    """The application and what a test may ask of it."""

    def __init__(self) -> None:
        self.app = create()
        self.held: dict[tuple[int, int], Any] = {}
        self.full: set[int] = set()
        raw: dict[str, Any] = {
            "key_type": bytes,
            "value_type": bytes,
            "key_serializer": "raw",
            "value_serializer": "raw",
        }
        self.jobs = self.app.topic(OPTIONS["jobs"], **raw)
        self.controls = self.app.topic(OPTIONS["controls"], **raw)
        self.counts = self.app.Table("counts", partitions=OPTIONS["partitions"], default=int)
        self.latest = self.app.GlobalTable("latest", partitions=1, recovery_buffer_size=1, value_type=Seen)
        self.app.agent(self.jobs, name="jobs")(self.take)
        self.app.agent(self.controls, name="controls")(self.control)

    async def take(self, stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            self.held[message.partition, message.offset] = event
            key = message.key.decode()
            self.counts[key] += 1
            headers = {name: value.decode() for name, value in (event.headers or {}).items()}
            say("got", at=[message.partition, message.offset], key=key, value=message.value.decode(), headers=headers)
            if message.partition in self.full:
                self.app.consumer.on_buffer_full(message.tp)

    async def control(self, stream: Any) -> None:
        async for event in stream.events():
            self.latest[event.key.decode()] = Seen(value=event.value.decode())

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "send":
                topic = self.controls if command.get("topic") == "controls" else self.jobs
                waiting = [
                    await topic.send(
                        key=item["key"].encode(),
                        value=item["value"].encode(),
                        partition=item.get("partition"),
                        headers={name: value.encode() for name, value in item.get("headers", {}).items()},
                    )
                    for item in command["items"]
                ]
                return {"offsets": [[(await future).partition, (await future).offset] for future in waiting]}
            case "ack":
                for at in command["at"]:
                    event = self.held.pop(tuple(at), None)
                    if event is not None:
                        event.ack()
            case "full":
                self.full = set(command["partitions"])
            case "drop":
                self.full.clear()
                for partition in command["partitions"]:
                    self.app.consumer.on_buffer_drop(TP(OPTIONS["jobs"], partition))
            case "tables":
                latest = {key: seen.value for key, seen in self.latest.items()}
                return {"counts": dict(self.counts), "latest": latest}
            case "committed":
                offsets = self.app.consumer._committed_offset.items()  # type: ignore[attr-defined]
                return {
                    "offsets": {
                        tp.partition: offset for tp, offset in offsets if tp.topic == OPTIONS["jobs"] and offset
                    }
                }
            case "stop":
                await self.app.stop()
        return {}


def say(kind: str, **data: Any) -> None:
    print(json.dumps({"kind": kind, **data}), flush=True)


async def serve(steered: Steered) -> None:
    """Start, then do what comes on standard input."""
    app = steered.app
    await app.start()
    while app.rebalancing or not app.tables.recovery.completed.is_set():  # type: ignore[attr-defined]
        await asyncio.sleep(0.02)
    say("ready")
    reader = asyncio.StreamReader(limit=2**26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        say("done", do=command["do"], **await steered.obey(command))
        if command["do"] == "stop":
            return


async def main() -> None:
    logging.basicConfig(level=OPTIONS.get("log", "WARNING"), stream=sys.stderr)
    if OPTIONS.get("rule") == "faust":
        CommitRule._new_offset = FaustConsumer._new_offset  # type: ignore[method-assign]
    steered, stopping = Steered(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    serving, ending = asyncio.ensure_future(serve(steered)), asyncio.ensure_future(stopping.wait())
    await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.is_set():
        await steered.app.stop()
        serving.cancel()
    else:
        ending.cancel()
        await serving


asyncio.run(main())
