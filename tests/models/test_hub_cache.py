"""What the user's Hugging Face cache has already is not fetched again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamapp.models.catalogue import place_of
from streamapp.models.hub_cache import from_hub_cache
from tests.models.sites import Double

# The fixtures that this file uses.
from tests.models.test_fleet import Host, database, double, host, storage

__all__ = ["database", "double", "host", "storage"]


@pytest.fixture
def blob(double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    blob = tmp_path / "hub" / "models--owner--name" / "blobs" / double.publisher.digest
    blob.parent.mkdir(parents=True)
    blob.write_bytes(double.publisher.body)
    return blob


async def test_a_cached_file_is_registered_without_a_download(
    host: Callable[[str], Host], double: Double, blob: Path
) -> None:
    one = host("one")
    row = await one.fetches.once("owner/name", "dream")
    path = place_of(row, one.settings)
    assert (row.digest, path.read_bytes()) == (double.publisher.digest, double.publisher.body)
    assert double.publisher.sent == 0, "it was downloaded all the same"
    assert path.stat().st_ino == blob.stat().st_ino, "it takes its room twice"


async def test_a_damaged_cache_is_left_alone_and_the_file_fetched(
    host: Callable[[str], Host], double: Double, blob: Path
) -> None:
    spoilt = bytes(len(double.publisher.body))
    blob.write_bytes(spoilt)
    one = host("one")
    row = await one.fetches.once("owner/name", "dream")
    path = place_of(row, one.settings)
    assert (path.read_bytes(), blob.read_bytes()) == (double.publisher.body, spoilt)
    assert not list(path.parent.glob("*.cached"))


async def test_a_digest_that_is_none_leads_nowhere(tmp_path: Path, blob: Path) -> None:
    del blob
    assert await from_hub_cache("../../etc/passwd", tmp_path / "x.safetensors") is None
    assert await from_hub_cache("*" * 64, tmp_path / "x.safetensors") is None
