"""The servers themselves: each answers a real client, and a pulled plug loses nothing that was acknowledged."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from playwright.async_api import Page
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import S3, Kafka, MariaDB, Missing, install, leftovers, process


async def test_a_record_survives_a_kill_of_the_broker(kafka: Kafka) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("servers-own-test", 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    await producer.start()
    await producer.send_and_wait("servers-own-test", b"kept")
    await producer.stop()

    before, address = kafka.pid, kafka.url
    kafka.kill()
    assert not kafka.running
    kafka.start()

    assert kafka.url == address
    assert kafka.pid != before
    consumer = AIOKafkaConsumer("servers-own-test", bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    record = await consumer.getone()
    await consumer.stop()
    assert record.value == b"kept"


def test_the_brokers_own_tools_run(kafka: Kafka) -> None:
    name = "servers-tool-test"
    address = ("--bootstrap-server", kafka.bootstrap)
    kafka.tool("org.apache.kafka.tools.TopicCommand", *address, "--create", "--topic", name, "--partitions", "3")
    said = kafka.tool("org.apache.kafka.tools.TopicCommand", *address, "--describe", "--topic", name)
    assert "PartitionCount: 3" in said


async def test_a_committed_row_survives_a_kill_of_the_database(mariadb: MariaDB, mariadb_url: str) -> None:
    engine = create_async_engine(mariadb_url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE words (word VARCHAR(20) PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO words VALUES ('熊猫🐼')"))
    await engine.dispose()

    mariadb.kill()
    mariadb.start()

    engine = create_async_engine(mariadb_url)
    async with engine.connect() as connection:
        word = await connection.scalar(text("SELECT word FROM words"))
    await engine.dispose()
    assert word == "熊猫🐼"


def test_each_database_is_fresh(mariadb: MariaDB) -> None:
    first, second = mariadb.create_database(), mariadb.create_database()
    assert first != second
    mariadb.drop_database(first)
    names = {row[0] for row in mariadb.execute("SHOW DATABASES")}
    assert second.rsplit("/", 1)[1].partition("?")[0] in names
    assert first.rsplit("/", 1)[1].partition("?")[0] not in names
    mariadb.drop_database(second)


def test_an_object_survives_a_kill_of_the_storage(s3: S3, s3_env: dict[str, str]) -> None:
    bucket = s3_env["STREAMAPP_STORAGE"].removeprefix("s3://")
    s3.client().put_object(Bucket=bucket, Key="a/b.png", Body=b"picture", ContentType="image/png", Metadata={"n": "1"})

    s3.kill()
    s3.start()

    answer = s3.client().get_object(Bucket=bucket, Key="a/b.png")
    assert (answer["Body"].read(), answer["ContentType"], answer["Metadata"]) == (b"picture", "image/png", {"n": "1"})


def test_each_bucket_is_fresh(s3: S3, s3_env: dict[str, str]) -> None:
    bucket = s3_env["STREAMAPP_STORAGE"].removeprefix("s3://")
    assert s3.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert s3.create_bucket() != bucket


async def test_a_page_runs_its_script_and_can_be_photographed(chromium_page: Page, tmp_path: Path) -> None:
    await chromium_page.set_content("<p id=a>before</p><script>a.textContent = 6 * 7</script>")
    assert await chromium_page.inner_text("#a") == "42"
    shot = await chromium_page.screenshot(path=tmp_path / "page.png")
    assert shot.startswith(b"\x89PNG")


def test_a_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "debian_root", lambda: False)
    with pytest.raises(Missing, match=r"no-such-program was not found\. Ask for it\."):
        install.program("no-such-program", packages=["no-such-package"], otherwise="Ask for it.")


def test_a_failing_command_shows_the_end_of_what_it_said() -> None:
    with pytest.raises(Missing, match=r"(?s)Trying failed with exit code 3:.*no luck"):
        install.command(["sh", "-c", "echo no luck; exit 3"], what="Trying")


def test_ports_stay_clear_of_the_ephemeral_range() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", process.free_port()))
        ports = {process.free_port() for _ in range(50)}
        assert taken.getsockname()[1] not in ports
    assert ports <= set(process.PORTS)


def test_only_loopback_is_reached(loopback_only: list[str]) -> None:
    with socket.socket() as client, pytest.raises(PermissionError):
        client.connect(("192.0.2.1", 80))
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("example.com", 443)
    assert [attempt.split()[0] for attempt in loopback_only] == ["192.0.2.1:80", "example.com"]
    loopback_only.clear()


def test_names_that_exist_nowhere_may_be_asked_for(loopback_only: list[str]) -> None:
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("storage.invalid", 443)
    assert loopback_only == []


def test_a_process_left_behind_is_found_even_when_its_parent_is_gone() -> None:
    said = install.command(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], what="Leaving a process behind")
    found = [leftover for leftover in leftovers.leftovers() if leftover.pid == int(said)]
    assert [leftover.line for leftover in found] == ["sleep 60"]
    leftovers.kill(found)
