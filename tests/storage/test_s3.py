"""S3: large objects in parts, presigned addresses, failures in words."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import ClientError
from yarl import URL

from streamapp.errors import ConfigError, Unavailable
from streamapp.settings import load_settings
from streamapp.storage import S3Storage, open_storage
from tests.storage.conftest import Bucket

MIB = 1024**2


def unfinished(bucket: Bucket) -> list[Any]:
    """Uploads in parts that nobody completed or aborted."""
    return list(bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads") or [])


@pytest.mark.parametrize("from_file", [False, True])
async def test_a_large_object_goes_up_in_parts(
    small_parts: S3Storage, bucket: Bucket, tmp_path: Path, from_file: bool
) -> None:
    data = b"".join(index.to_bytes(4, "big") for index in range(11 * MIB // 4))
    (tmp_path / "large").write_bytes(data)
    await small_parts.put("a/large.bin", tmp_path / "large" if from_file else data, "application/x-own")
    info = await small_parts.head("a/large.bin")
    assert info is not None
    assert (info.size, info.content_type) == (11 * MIB, "application/x-own")
    # The tag of an object that went up in three parts ends so.
    assert info.etag.endswith('-3"')
    whole = b"".join([chunk async for chunk in small_parts.read("a/large.bin")])
    assert whole == data
    assert unfinished(bucket) == []


async def test_a_broken_upload_leaves_nothing(
    small_parts: S3Storage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = small_parts._client.upload_part

    async def fails_at_the_second(**part: Any) -> Any:
        if part["PartNumber"] == 2:
            assert len(unfinished(bucket)) == 1
            raise ClientError({"Error": {"Code": "SlowDown"}}, "UploadPart")
        return await upload(**part)

    monkeypatch.setattr(small_parts._client, "upload_part", fails_at_the_second)
    with pytest.raises(Unavailable, match="SlowDown"):
        await small_parts.put("a/large.bin", bytes(11 * MIB), "text/plain")
    assert unfinished(bucket) == []
    assert await small_parts.head("a/large.bin") is None


async def test_a_cancelled_upload_leaves_nothing(
    small_parts: S3Storage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def hangs(**part: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(small_parts._client, "upload_part", hangs)
    task = asyncio.create_task(small_parts.put("a/large.bin", bytes(11 * MIB), "text/plain"))
    async with asyncio.timeout(20):
        await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert unfinished(bucket) == []


async def test_a_presigned_address_can_make_it_a_download(small_parts: S3Storage) -> None:
    await small_parts.put("a/b.png", b"png", "image/png")
    async with aiohttp.ClientSession() as session:
        plain = await small_parts.url("a/b.png", expires_s=60)
        async with session.get(URL(plain, encoded=True)) as answer:
            assert answer.status == 200
            assert "Content-Disposition" not in answer.headers
        named = await small_parts.url("a/b.png", expires_s=60, filename="panda 熊猫.png")
        async with session.get(URL(named, encoded=True)) as answer:
            assert answer.status == 200
            assert "panda%20%E7%86%8A%E7%8C%AB.png" in answer.headers["Content-Disposition"]
            assert await answer.read() == b"png"


async def test_the_prefix_keeps_installations_apart(bucket: Bucket) -> None:
    one, two = (S3Storage(bucket.name, prefix, endpoint=bucket.endpoint) for prefix in ("one", "two"))
    await one.start()
    await two.start()
    try:
        await one.put("a", b"1", "text/plain")
        assert await two.head("a") is None
        keys = [found["Key"] for found in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]]
        assert "one/a" in keys
    finally:
        await one.close()
        await two.close()


async def test_a_missing_bucket_is_named(bucket: Bucket) -> None:
    storage = S3Storage("no-such-bucket", endpoint=bucket.endpoint)
    await storage.start()
    try:
        with pytest.raises(Unavailable, match="no-such-bucket"):
            await storage.ping()
        with pytest.raises(Unavailable, match="does not exist"):
            await storage.put("a", b"x", "text/plain")
    finally:
        await storage.close()


async def test_a_server_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        storage = S3Storage("pictures", endpoint=endpoint, attempts=1)
        await storage.start()
        with pytest.raises(Unavailable) as caught:
            await storage.ping()
        await storage.close()
    assert caught.value.retryable
    with pytest.raises(Unavailable):
        await storage.head("a")


async def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage = S3Storage("pictures", endpoint="http://127.0.0.1:9")
    await storage.start()
    with pytest.raises(Unavailable, match="credentials"):
        await storage.ping()
    await storage.close()


def test_an_address_without_a_bucket_is_refused() -> None:
    with pytest.raises(ConfigError, match="BUCKET"):
        open_storage(load_settings({}, storage="s3:///prefix"))
