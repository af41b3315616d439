"""The yardstick: the plain recipe people write for queued image generation, without anything of ours.

An aiohttp handler inserts one row and produces one message with acks=all before it answers; one consumer
loop takes message by message, updates the row to running, "draws" (an engine that costs nothing), updates
it to succeeded, and commits. One process each, on the same Kafka and MariaDB as the service. It does less:
no claim, no lease, no outbox, no picture, no recipe, no events, no retry.

    python -m benchmarks.pipeline.plain web|worker --port N    (environment: PLAIN_KAFKA, PLAIN_MYSQL)
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
import uuid
from typing import Any

import aiomysql
import orjson
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from sqlalchemy.engine import make_url

from benchmarks.pipeline import marks

TOPIC = "plain_tasks"
TABLE = """
CREATE TABLE IF NOT EXISTS plain_tasks (
  id VARCHAR(40) PRIMARY KEY, state VARCHAR(12) NOT NULL, params TEXT NOT NULL, result TEXT,
  submitted_at BIGINT NOT NULL, started_at BIGINT, ended_at BIGINT, KEY (state)
) CHARACTER SET utf8mb4
"""


def now_ms() -> int:
    """Host clock: the plain recipe has no better one."""
    return int(time.time() * 1000)


async def open_pool() -> Any:
    """A small connection pool, autocommit as people leave it."""
    url = make_url(os.environ["PLAIN_MYSQL"])
    return await aiomysql.create_pool(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        db=url.database,
        charset="utf8mb4",
        autocommit=True,
        maxsize=10,
    )


async def execute(pool: Any, statement: str, *values: Any) -> None:
    """One statement on a pooled connection."""
    async with pool.acquire() as connection, connection.cursor() as cursor:
        await cursor.execute(statement, values)


async def serve(port: int) -> None:
    """The handler: insert, produce and wait for the broker, answer."""
    pool = await open_pool()
    await execute(pool, TABLE)
    producer = AIOKafkaProducer(bootstrap_servers=os.environ["PLAIN_KAFKA"], acks="all")
    await producer.start()

    async def generate(request: web.Request) -> web.Response:
        body = await request.json()
        task_id = uuid.uuid4().hex
        await execute(
            pool,
            "INSERT INTO plain_tasks (id, state, params, submitted_at) VALUES (%s, 'queued', %s, %s)",
            task_id,
            orjson.dumps(body["params"]).decode(),
            now_ms(),
        )
        marks.mark("queued", task_id)
        message = orjson.dumps({"id": task_id, "text": body["text"], "params": body["params"]})
        await producer.send_and_wait(TOPIC, message, key=task_id.encode())
        return web.json_response({"code": 0, "data": {"task_id": task_id}})

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_post("/generate", generate)
    app.router.add_get("/readyz", ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def work() -> None:
    """The consumer loop: one message, two updates, one commit, over and over."""
    pool = await open_pool()
    await execute(pool, TABLE)
    consumer = AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=os.environ["PLAIN_KAFKA"],
        group_id="plain",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    async for message in consumer:
        task = orjson.loads(message.value)
        await execute(pool, "UPDATE plain_tasks SET state='running', started_at=%s WHERE id=%s", now_ms(), task["id"])
        marks.mark("begun", task["id"])
        result = orjson.dumps({"text": task["text"]}).decode()
        await execute(
            pool,
            "UPDATE plain_tasks SET state='succeeded', ended_at=%s, result=%s WHERE id=%s",
            now_ms(),
            result,
            task["id"],
        )
        await consumer.commit()


def main() -> None:
    """Run one of the two processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("web", "worker"))
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    marks.keep()
    asyncio.run(serve(chosen.port) if chosen.role == "web" else work())


if __name__ == "__main__":
    main()
