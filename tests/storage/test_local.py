"""The folder: signed addresses, no way out, nothing half-written."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from streamapp.errors import InvalidRequest, NotFound, Unavailable
from streamapp.storage import LocalStorage


def parts(url: str) -> tuple[str, str, str, str | None]:
    """Key, expiry, signature and name of a signed address."""
    split = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(split.query).items()}
    return split.path.removeprefix("/files/"), query["exp"], query["sig"], query.get("name")


async def test_an_address_is_verified_until_it_expires(tmp_path: Path) -> None:
    now = 1_000_000.0
    storage = LocalStorage(tmp_path, clock=lambda: now)
    await storage.start()
    address = parts(await storage.url("a/b.png", expires_s=60))
    assert address[:2] == ("a/b.png", "1000060")
    assert storage.verify(*address)
    now = 1_000_061.0
    assert not storage.verify(*address)


async def test_an_address_grants_one_object_under_one_name(local: LocalStorage) -> None:
    key, exp, sig, name = parts(await local.url("a/b.png", filename="panda 熊猫.png"))
    assert name == "panda 熊猫.png"
    assert local.verify(key, exp, sig, name)
    assert not local.verify("a/c.png", exp, sig, name)
    assert not local.verify(key, str(int(exp) + 1), sig, name)
    assert not local.verify(key, exp, sig, "other.exe")
    assert not local.verify(key, exp, sig)
    assert not local.verify(key, exp, "0" * 40, name)
    assert not local.verify(key, exp, "é", name)
    assert not local.verify(key, "soon", sig, name)
    assert not local.verify(key, "²", sig, name)


async def test_processes_share_one_key_that_only_the_owner_reads(tmp_path: Path) -> None:
    storages = [LocalStorage(tmp_path) for _ in range(8)]
    barrier = threading.Barrier(len(storages))

    def open_at_once(storage: LocalStorage) -> None:
        barrier.wait(timeout=10)
        storage._open()

    threads = [threading.Thread(target=open_at_once, args=(storage,)) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    addresses = {await storage.url("a/b", expires_s=10**9) for storage in storages}
    assert all(storages[0].verify(*parts(address)) for address in addresses)
    assert stat.S_IMODE((tmp_path / ".signing-key").stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.glob(".secret-*")] == []


async def test_nothing_is_signed_before_the_key_is_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await LocalStorage(tmp_path).url("a/b")


async def test_symbolic_links_lead_nowhere(local: LocalStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    objects = tmp_path / "files" / "objects"
    (objects / "folder").symlink_to(outside)
    (objects / "file").symlink_to(outside / "secret")
    with pytest.raises(InvalidRequest):
        await anext(aiter(local.read("folder/secret")))
    with pytest.raises(NotFound):
        await anext(aiter(local.read("file")))
    with pytest.raises(InvalidRequest):
        await local.put("folder/new", b"x", "text/plain")
    with pytest.raises(InvalidRequest):
        await local.delete("folder/secret")
    assert sorted(entry.name for entry in outside.iterdir()) == ["secret"]


async def test_a_folder_is_no_object(local: LocalStorage) -> None:
    await local.put("a/b", b"x", "text/plain")
    assert await local.head("a") is None


async def test_a_failed_write_leaves_the_old_object_and_no_litter(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await local.put("a/b", b"old", "text/plain")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left"):
        await local.put("a/b", b"new", "text/plain")
    monkeypatch.undo()
    assert [chunk async for chunk in local.read("a/b")] == [b"old"]
    assert list((tmp_path / "files" / "scratch").iterdir()) == []


async def test_a_reader_keeps_the_object_that_it_opened(local: LocalStorage) -> None:
    await local.put("a/b", b"1" * 600_000, "text/plain")
    reader = aiter(local.read("a/b"))
    first = await anext(reader)
    await local.put("a/b", b"2" * 600_000, "text/plain")
    assert first + b"".join([chunk async for chunk in reader]) == b"1" * 600_000


async def test_leftovers_of_killed_writers_are_removed_in_time(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    await storage.start()
    old, fresh = tmp_path / "scratch" / "old", tmp_path / "scratch" / "fresh"
    old.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(old, (1, 1))
    await storage.start()
    assert (old.exists(), fresh.exists()) == (False, True)


async def test_deleting_leaves_no_empty_folders(local: LocalStorage, tmp_path: Path) -> None:
    await local.put("a/b/c", b"x", "own/type")
    await local.put("a/d.txt", b"x", "text/plain")
    await local.delete("a/b/c")
    objects = tmp_path / "files" / "objects"
    assert [path.relative_to(objects).as_posix() for path in sorted(objects.rglob("*"))] == ["a", "a/d.txt"]
    assert list((tmp_path / "files" / "types").iterdir()) == []


async def test_a_storage_that_cannot_write_says_so(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "files" / "scratch").rmdir()
    with pytest.raises(Unavailable):
        await local.ping()
