"""Poison, nasty messages and replays on real servers: one worker and one web process, steered by HTTP and commands."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streamapp import topics
from tests.integration.fleet import PARTITIONS, ROOT, Fleet, Member, until

pytestmark = pytest.mark.timeout(480)

NASTY: dict[str, bytes | None] = {
    "null": None,
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00\x80",
    "deep": b"[" * 200_000,
    "deep objects": b'{"kind":' * 50_000 + b"1" + b"}" * 50_000,
    "huge": b'{"kind":"task","v":1,"text":"' + b"x" * 900_000 + b'"}',
    "another version": b'{"kind":"task","v":99}',
    "another kind": b'{"kind":"payment","v":1,"amount":12}',
    "wrong types": b'{"kind":"task","v":1,"task_id":[],"user_id":{},"params":7,"priority":"high","cost":1e999}',
    "a list": b'[{"kind":"task","v":1}]',
    "a huge number": b'{"kind":"worker_status","v":1,"at":' + b"9" * 4_000 + b"}",
}


@pytest.fixture
async def fleet(tmp_path: Path, kafka_url: str, mariadb_url: str, s3_env: dict[str, str]) -> AsyncIterator[Fleet]:
    env = {
        "STREAMAPP_BROKER": kafka_url,
        "STREAMAPP_DATABASE": mariadb_url,
        "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
        "STREAMAPP_APP_ID": f"dead-{tmp_path.name}",
        "STREAMAPP_PARTITIONS": PARTITIONS,
        "STREAMAPP_ENGINE": "fake-process",
        "STREAMAPP_MAX_ATTEMPTS": "2",
        **s3_env,
    }
    async with Fleet(env, tmp_path) as members:
        for arguments in (("topics", "create"), ("db", "upgrade")):
            assert members.command(*arguments).wait(120) == 0
        yield members


async def command(fleet: Fleet, *arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamapp", *arguments, "--json", cwd=ROOT, env=fleet.base(), stdout=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == code, out
    return orjson.loads(out)


async def send_nasty(servers: str) -> None:
    """Everything nasty onto every topic that a worker reads; the client wants a key where there is no value."""
    async with AIOKafkaProducer(bootstrap_servers=servers, max_request_size=2_000_000) as producer:
        for topic in ("sd15_tasks", "sd15_tasks_urgent", topics.WORKER_STATUS, topics.TASK_EVENTS, topics.DEAD_LETTERS):
            for value in NASTY.values():
                await producer.send_and_wait(topic, value, key=b"key" if value is None else None, partition=0)


async def letters_on_topic(servers: str) -> list[dict[str, Any]]:
    """Every record of ``dead_letters`` that is a letter."""
    tp = TopicPartition(topics.DEAD_LETTERS, 0)
    async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest") as reader:
        reader.assign([tp])
        end = (await reader.end_offsets([tp]))[tp]
        found: list[dict[str, Any]] = []
        await reader.seek_to_beginning(tp)
        while await reader.position(tp) < end:
            for record in (await reader.getmany(timeout_ms=1000)).get(tp, []):
                try:
                    body = orjson.loads(record.value or b"")
                except orjson.JSONDecodeError:
                    continue
                if isinstance(body, dict) and body.get("kind") == "dead_letter":
                    found.append(body)
        return found


async def failed(fleet: Fleet, web: Member, task_id: str) -> dict[str, Any]:
    return (await fleet.finished(web, [task_id], 120))[task_id]


async def test_poison_and_nasty_messages_end_in_dead_letters_and_get_another_chance(fleet: Fleet) -> None:
    web, worker = fleet.start("web", "web-1"), fleet.start("worker", "worker-1")
    await fleet.ready(web, worker)
    servers = fleet.env["STREAMAPP_BROKER"].removeprefix("kafka://")
    await send_nasty(servers)
    poison = await fleet.submit(web, "fake:crash")
    good = [await fleet.submit(web, f"apple {number}", priority=number % 4) for number in range(4)]
    ended = await fleet.finished(web, good, 120)
    assert {task["status"] for task in ended.values()} == {"succeeded"}, "what is nasty holds up nobody"
    task = await failed(fleet, web, poison)
    assert (task["status"], task["attempts"]) == ("failed", 2)

    # Listed by the command and by every role the same, with history and bytes.
    listed = await command(fleet, "dead", "list")
    assert [letter["id"] for letter in listed if letter["task_id"]] == [poison]

    async def all_listed() -> bool:
        page = (await fleet.json("GET", f"{web.url}/api/v1/dead_letters?limit=200", status=200))["data"]["letters"]
        return len([letter for letter in page if not letter["task_id"]]) >= 2 * len(NASTY)

    await until(all_listed, within=60, what="every unreadable task message is listed", log=worker.log)
    shown = await command(fleet, "dead", "show", poison)
    assert [(entry["code"], entry["attempt"]) for entry in shown["history"]] == [
        ("engine_crashed", 1),
        ("engine_crashed", 2),
    ]
    for member in (web, worker):
        path = f"{member.url}/api/v1/dead_letters"
        assert (await fleet.json("GET", f"{path}/{poison}", status=200))["data"] == shown
        page = (await fleet.json("GET", f"{path}?limit=200", status=200))["data"]["letters"]
        assert {x["reason"] for x in page} >= {"empty", "malformed", "too_large", "version", "foreign"}
    assert [x["task_id"] for x in await letters_on_topic(servers) if x.get("task_id") == poison] == [poison]

    # A replay keeps the id and counts anew; a drop is for good and visible.
    assert await command(fleet, "dead", "replay", poison) == {poison: "replayed"}
    task = await failed(fleet, web, poison)
    assert (task["status"], task["attempts"]) == ("failed", 2)
    assert [entry["code"] for entry in task["history"]] == ["engine_crashed"] * 2 + ["replayed", "engine_crashed"]
    counts = await command(fleet, "replay", "--since", "10m", "--dry-run")
    assert (counts["succeeded"], counts["requeued"]) == (4, 1)
    assert counts["unreadable"] >= 2 * len(NASTY)
    assert await command(fleet, "dead", "drop", poison) == {poison: "dropped"}
    task = await fleet.task(web, poison)
    assert (task["status"], task["history"][-1]["code"]) == ("failed", "dropped")
    counts = await command(fleet, "replay", "--since", "10m", "--topic", "sd15_tasks")
    assert (counts["requeued"], counts["dropped"]) == (0, 1)
    assert worker.process.poll() is None
