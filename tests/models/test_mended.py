"""A file that is damaged on the disk is fetched again by itself, once, through the verified path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from streamapp.db import ModelRow
from streamapp.errors import AppError
from streamapp.models import bringing
from streamapp.models.catalogue import place_of
from streamapp.models.verified import check_weights
from tests.models.sites import Double

# The fixtures that this file uses.
from tests.models.test_fleet import Host, database, double, host, storage

__all__ = ["database", "double", "host", "storage"]


async def damaged(one: Host) -> tuple[ModelRow, Path]:
    """A fetched checkpoint with one byte changed."""
    row = await one.fetches.once("civitai:123@456", "dream")
    assert isinstance(row, ModelRow)
    path = place_of(row, one.settings)
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    return row, path


async def test_the_right_bytes_come_from_the_publisher(host: Callable[[str], Host], double: Double) -> None:
    one = host("one")
    row, path = await damaged(one)
    await one.shared._storage.delete(f"weights/{row.digest[:2]}/{row.digest}.safetensors")
    sent = double.publisher.sent
    assert await one.fetches.bring.mended(row) is True
    assert path.read_bytes() == double.publisher.body
    assert double.publisher.sent == sent + len(double.publisher.body)
    check_weights(row, path, one.settings.data_path / "verified")
    assert not list(path.parent.glob(f"*{bringing.DAMAGED}")), "the damaged file fills the disk"


async def test_the_fleets_copy_is_taken_first(host: Callable[[str], Host], double: Double) -> None:
    one = host("one")
    row, path = await damaged(one)
    sent = double.publisher.sent
    assert await one.fetches.bring.mended(replace(row, traits={})) is True
    assert (path.read_bytes(), double.publisher.sent) == (double.publisher.body, sent)


async def test_it_is_done_once_and_what_does_not_come_leaves_the_file_as_it_was(
    host: Callable[[str], Host], double: Double
) -> None:
    one = host("one")
    row, path = await damaged(one)
    await one.shared._storage.delete(f"weights/{row.digest[:2]}/{row.digest}.safetensors")
    body = path.read_bytes()
    double.publisher.faults = ["404"]
    with pytest.raises(AppError):
        await one.fetches.bring.mended(row)
    assert path.read_bytes() == body
    asked = len(double.publisher.seen)
    assert await one.fetches.bring.again(row) is False
    assert len(double.publisher.seen) == asked


async def test_what_came_from_nowhere_or_is_right_is_left_alone(host: Callable[[str], Host], double: Double) -> None:
    one = host("one")
    row, path = await damaged(one)
    nowhere = replace(row, digest="0" * 64, traits={})
    assert await one.fetches.bring.again(nowhere) is False
    path.write_bytes(double.publisher.body)
    sent, inode = double.publisher.sent, path.stat().st_ino
    assert await one.fetches.bring.mended(row) is True
    assert (double.publisher.sent, path.stat().st_ino) == (sent, inode), "another process had mended it"


async def test_who_asks_meanwhile_waits_for_the_same_transfer(host: Callable[[str], Host], double: Double) -> None:
    one = host("one")
    row, path = await damaged(one)
    await one.shared._storage.delete(f"weights/{row.digest[:2]}/{row.digest}.safetensors")
    sent = double.publisher.sent
    assert await asyncio.gather(*(one.fetches.bring.again(row) for _ in range(3))) == [True] * 3
    assert await one.fetches.bring(row) is True
    assert double.publisher.sent == sent + len(double.publisher.body)
    assert path.read_bytes() == double.publisher.body
