"""What holds for every storage."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from streamapp.errors import InvalidRequest, NotFound
from streamapp.storage import Storage

KEY = "images/2026/11/23/ab/img-20261123-x/0.png"


async def content(storage: Storage, key: str, start: int = 0, end: int | None = None) -> bytes:
    """The whole range as one value."""
    return b"".join([chunk async for chunk in storage.read(key, start, end)])


async def test_an_object_comes_back_as_it_was_put(storage: Storage) -> None:
    data = bytes(range(256)) * 3000
    await storage.put(KEY, data, "image/png")
    assert await content(storage, KEY) == data
    info = await storage.head(KEY)
    assert info is not None
    assert (info.size, info.content_type) == (len(data), "image/png")
    assert info.etag.startswith('"')
    assert info.etag.endswith('"')
    assert abs(info.modified_ms / 1000 - time.time()) < 120


async def test_a_file_comes_back_as_it_was_put(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "upload.bin"
    source.write_bytes(b"abc" * 100_000)
    await storage.put("inputs/upload.bin", source, "application/x-own")
    assert await content(storage, "inputs/upload.bin") == source.read_bytes()
    info = await storage.head("inputs/upload.bin")
    assert info is not None
    assert info.content_type == "application/x-own"


async def test_the_last_put_wins_with_its_type(storage: Storage) -> None:
    await storage.put(KEY, b"first", "text/plain")
    await storage.put(KEY, b"second!", "image/png")
    info = await storage.head(KEY)
    assert info is not None
    assert (info.size, info.content_type) == (7, "image/png")
    assert await content(storage, KEY) == b"second!"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 5, b"34"),
        (0, 1, b"0"),
        (8, 99, b"89"),
        (10, None, b""),
        (50, 60, b""),
        (4, 4, b""),
    ],
)
async def test_ranges_are_half_open(storage: Storage, start: int, end: int | None, expected: bytes) -> None:
    await storage.put("a/ten", b"0123456789", "text/plain")
    assert await content(storage, "a/ten", start, end) == expected


async def test_a_range_may_cross_chunks(storage: Storage) -> None:
    data = bytes(index % 251 for index in range(700_000))
    await storage.put("a/large", data, "application/octet-stream")
    assert await content(storage, "a/large", 200_001, 600_003) == data[200_001:600_003]


async def test_an_empty_object_is_an_object(storage: Storage) -> None:
    await storage.put("a/empty", b"", "text/plain")
    info = await storage.head("a/empty")
    assert info is not None
    assert info.size == 0
    assert await content(storage, "a/empty") == b""


async def test_what_is_not_there_is_not_found(storage: Storage) -> None:
    assert await storage.head("a/none") is None
    for start, end in ((0, None), (2, 5), (4, 4)):
        with pytest.raises(NotFound):
            await content(storage, "a/none", start, end)


async def test_a_deleted_object_is_gone_and_deleting_again_is_harmless(storage: Storage) -> None:
    await storage.put("a/b/c", b"x", "text/plain")
    await storage.delete("a/b/c")
    assert await storage.head("a/b/c") is None
    await storage.delete("a/b/c")
    await storage.put("a/b/c", b"again", "text/plain")
    assert await content(storage, "a/b/c") == b"again"


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a/.hidden", "a\\b", "a\nb", "a/", "é", "x" * 500]
)
async def test_no_key_leads_out(storage: Storage, key: str) -> None:
    with pytest.raises(InvalidRequest):
        await storage.put(key, b"x", "text/plain")
    with pytest.raises(InvalidRequest):
        await storage.head(key)
    with pytest.raises(InvalidRequest):
        await content(storage, key)
    with pytest.raises(InvalidRequest):
        await storage.delete(key)
    with pytest.raises(InvalidRequest):
        await storage.url(key)


async def test_readers_see_the_old_or_the_new_object_whole(storage: Storage) -> None:
    old, new = b"o" * 400_000, b"n" * 500_000
    await storage.put("a/swap", old, "text/plain")
    seen = []

    async def read() -> None:
        for _ in range(10):
            seen.append(await content(storage, "a/swap"))  # noqa: PERF401

    async def write() -> None:
        for _ in range(3):
            await storage.put("a/swap", new, "text/plain")
            await storage.put("a/swap", old, "text/plain")

    await asyncio.gather(read(), write())
    assert len(seen) == 10
    assert set(seen) <= {old, new}


async def test_many_writers_of_one_key_leave_one_of_theirs(storage: Storage) -> None:
    bodies = [bytes([65 + index]) * 50_000 for index in range(8)]
    await asyncio.gather(*(storage.put("a/race", body, "text/plain") for body in bodies))
    assert await content(storage, "a/race") in bodies


async def test_ping_answers(storage: Storage) -> None:
    await storage.ping()


async def test_addresses_differ_by_object(storage: Storage) -> None:
    await storage.put("a/one", b"1", "text/plain")
    await storage.put("a/two", b"2", "text/plain")
    one, two = await storage.url("a/one", expires_s=60), await storage.url("a/two", expires_s=60)
    assert one != two
    # A local storage's addresses are relative and answered by the web views; S3 answers its own.
    if one.startswith("http"):
        async with aiohttp.ClientSession() as session, session.get(one) as answer:
            assert (answer.status, await answer.read()) == (200, b"1")
