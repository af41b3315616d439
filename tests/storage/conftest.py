"""A storage of each kind: a folder, S3 against moto, S3 against a real server."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from streamapp.settings import load_settings
from streamapp.storage import LocalStorage, S3Storage, Storage, open_storage


@dataclass(frozen=True)
class Bucket:
    """An S3 bucket by its server, with a blocking client that looks at it from outside."""

    name: str
    endpoint: str
    client: Any


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The endpoint of an S3 imitation in this process."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def _moto_bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint)
    name = f"pictures-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name)
    return Bucket(name, endpoint, client)


def _real_bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    environment: dict[str, str] = request.getfixturevalue("s3_env")
    for name, value in environment.items():
        if name.startswith("AWS_") and name != "AWS_EC2_METADATA_DISABLED":
            monkeypatch.setenv(name, value)
    name = environment["STREAMAPP_STORAGE"].removeprefix("s3://")
    return Bucket(name, environment["STREAMAPP_S3_ENDPOINT"], request.getfixturevalue("s3").client())


@pytest.fixture(params=["moto", "server"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket on each kind of S3."""
    if request.param == "moto":
        return _moto_bucket(request.getfixturevalue("moto"), monkeypatch)
    return _real_bucket(request, monkeypatch)


@pytest.fixture(params=["local", "moto", "server"])
async def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Storage]:
    """A started storage of each kind, opened from settings as the service does it."""
    if request.param == "local":
        settings = load_settings({}, storage=f"file://{tmp_path}/a%20b")
    else:
        make: dict[str, Callable[[], Bucket]] = {
            "moto": lambda: _moto_bucket(request.getfixturevalue("moto"), monkeypatch),
            "server": lambda: _real_bucket(request, monkeypatch),
        }
        found = make[request.param]()
        settings = load_settings({}, storage=f"s3://{found.name}/some/prefix", s3_endpoint=found.endpoint)
    opened = open_storage(settings)
    await opened.start()
    yield opened
    await opened.close()
    # The transport of a closed connection is collected in the loop's next turn.
    await asyncio.sleep(0)


@pytest.fixture
async def local(tmp_path: Path) -> LocalStorage:
    """A started local storage in ``tmp_path / "files"``."""
    opened = LocalStorage(tmp_path / "files")
    await opened.start()
    return opened


@pytest.fixture
async def small_parts(bucket: Bucket) -> AsyncIterator[S3Storage]:
    """An S3 storage that already cuts at the protocol's least part size, 5 MiB."""
    opened = S3Storage(bucket.name, "big", endpoint=bucket.endpoint, part=5 * 1024**2)
    await opened.start()
    yield opened
    await opened.close()
