"""The same fleet over TLS with a password, as a managed Kafka asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamapp.broker.admin import open_admin
from streamapp.errors import Unavailable
from streamapp.settings import PREFIX, Settings
from tests.integration.fleet import PARTITIONS, Fleet
from tests.servers import Kafka

pytestmark = pytest.mark.timeout(180)


def settings(env: dict[str, str], **given: Any) -> Settings:
    """What a process with this environment would have read."""
    values: dict[str, Any] = {name.removeprefix(PREFIX).lower(): value for name, value in env.items()}
    return Settings(**values | given)


async def test_a_task_is_drawn_over_an_encrypted_connection(tmp_path: Path, kafka: Kafka, mariadb_url: str) -> None:
    env = {
        **kafka.secure,
        "STREAMAPP_DATABASE": mariadb_url,
        "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
        "STREAMAPP_APP_ID": f"secure-{tmp_path.name}",
        "STREAMAPP_PARTITIONS": PARTITIONS,
        "STREAMAPP_ENGINE": "fake",
    }
    async with Fleet(env, tmp_path) as fleet:
        for arguments in (("topics", "create"), ("db", "upgrade")):
            process = fleet.command(*arguments)
            assert process.wait(120) == 0, (tmp_path / f"{'-'.join(arguments)}.log").read_text()
        web, worker = fleet.start("web", "web"), fleet.start("worker", "worker-0")
        await fleet.ready(web, worker)
        task_id = await fleet.submit(web, "a red apple")
        ended = await fleet.finished(web, [task_id], within=60)
    assert ended[task_id]["status"] == "succeeded"
    assert ended[task_id]["worker_id"] == "worker-0"
    for log in tmp_path.glob("*.log"):
        assert env["STREAMAPP_KAFKA_PASSWORD"] not in log.read_text()


@pytest.mark.parametrize(
    "wrong", [{"kafka_password": "wrong"}, {"kafka_ca_file": None}, {"kafka_security_protocol": "PLAINTEXT"}]
)
async def test_a_connection_that_is_refused_says_so(kafka: Kafka, wrong: dict[str, str]) -> None:
    admin = open_admin(settings(kafka.secure, **wrong))

    async def ask() -> None:
        await admin.start()
        await admin.ping()

    with pytest.raises(Unavailable) as caught:
        await ask()
    await admin.close()
    assert "wrong" not in caught.value.message.split()
