"""A load finds out about damaged files, and reads them whole only when it has to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from streamapp.db import ModelRow
from streamapp.models import verified
from streamapp.models.digest import identify
from streamapp.models.verified import DamagedWeights, check_weights, note_weights
from tests.models.publisher import checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(checkpoint(100_000))
    return path


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was read whole."""
    seen: list[Path] = []

    def counting(path: Path) -> object:
        seen.append(path)
        return identify(path)

    monkeypatch.setattr(verified, "identify", counting)
    return seen


def row(path: Path) -> ModelRow:
    digest, size = identify(path)
    return ModelRow(
        name="dream", version=digest[:10], family="sd15", source="file:", path="x", digest=digest, size=size
    )


def flip(path: Path, at: int = -5) -> None:
    """One byte of the tensors becomes another; the file's times stay as they were."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_what_was_noted_is_not_read_again(path: Path, notes: Path, hashed: list[Path]) -> None:
    known = row(path)
    note_weights(known, path, notes)
    check_weights(known, path, notes)
    assert hashed == []


def test_what_nobody_noted_is_read_once(path: Path, notes: Path, hashed: list[Path]) -> None:
    known = row(path)
    check_weights(known, path, notes)
    check_weights(known, path, notes)
    assert hashed == [path]


@pytest.mark.parametrize(
    "touch",
    [
        os.utime,
        lambda path: path.replace(path.with_name("gone")) and path.write_bytes(path.with_name("gone").read_bytes()),
    ],
    ids=["time", "inode"],
)
def test_a_touched_file_is_read_again(
    path: Path, notes: Path, hashed: list[Path], touch: Callable[[Path], object]
) -> None:
    known = row(path)
    note_weights(known, path, notes)
    touch(path)
    check_weights(known, path, notes)
    assert hashed == [path]


def test_a_byte_that_changed_with_the_file_s_time_is_found(path: Path, notes: Path) -> None:
    known = row(path)
    note_weights(known, path, notes)
    flip(path)
    os.utime(path)
    with pytest.raises(DamagedWeights, match="models pull dream"):
        check_weights(known, path, notes)


def test_always_finds_a_byte_that_changed_in_secret(path: Path, notes: Path) -> None:
    known = row(path)
    note_weights(known, path, notes)
    flip(path)
    check_weights(known, path, notes, "changed")
    with pytest.raises(DamagedWeights, match="sha256"):
        check_weights(known, path, notes, "always")
    check_weights(known, path, notes, "never")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_always_finds_it_anywhere(path: Path, notes: Path, share: float) -> None:
    known = row(path)
    note_weights(known, path, notes)
    data, stamp = bytearray(path.read_bytes()), path.stat()
    data[round(share * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(DamagedWeights):
        check_weights(known, path, notes, "always")


def test_a_cut_file_and_a_broken_header_are_found_without_hashing(path: Path, notes: Path, hashed: list[Path]) -> None:
    known = row(path)
    note_weights(known, path, notes)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(DamagedWeights, match="bytes"):
        check_weights(known, path, notes)
    path.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(DamagedWeights):
        check_weights(known, path, notes)
    assert hashed == []


def test_a_folder_is_checked_file_by_file(tmp_path: Path, notes: Path, hashed: list[Path]) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    config = folder / "unet" / "config.json"
    config.write_text('{"a": 1}')
    known = row(folder)
    note_weights(known, folder, notes)
    check_weights(known, folder, notes)
    assert hashed == []
    config.write_text('{"a": 2}')
    with pytest.raises(DamagedWeights, match="sha256"):
        check_weights(known, folder, notes)
    (folder / "README.md").write_text("nothing that is loaded")
    config.write_text('{"a": 1}')
    check_weights(known, folder, notes)
