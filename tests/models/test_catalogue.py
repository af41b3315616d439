"""Digests, and local files that join the registry."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.errors import InvalidRequest, NotFound
from streamapp.models.catalogue import HERE, add_file, locate
from streamapp.models.digest import autov3, identify
from streamapp.models.shipped import POCKET
from streamapp.settings import Settings, load_settings
from tests.models.make_lora import make_lora


class Shelf:
    """A registry that keeps rows in a list."""

    def __init__(self) -> None:
        self.rows: list[ModelRow | LoraRow] = []

    async def add_model(self, row: ModelRow) -> None:
        self.rows.append(row)

    async def add_lora(self, row: LoraRow) -> None:
        self.rows.append(row)

    async def lora(self, name: str, version: str | None = None) -> LoraRow | None:
        assert version is None
        return next((row for row in self.rows if isinstance(row, LoraRow) and row.name == name), None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({}, data_dir=tmp_path / "data")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A well-formed file that could be a checkpoint."""
    path = tmp_path / "dreamy.safetensors"
    save_file({"model.diffusion_model.x": np.arange(6, dtype=np.float32)}, path)
    return path


def test_a_folders_digest_can_be_had_by_hand() -> None:
    kinds = r".*\.\(safetensors\|json\|txt\|model\)"
    by_hand = f"find model_index.json */ -regex '{kinds}' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(["bash", "-c", by_hand], cwd=HERE / "pocket", capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == POCKET.digest


def test_the_card_does_not_count_but_the_weights_do(tmp_path: Path) -> None:
    copy = tmp_path / "pocket"
    shutil.copytree(HERE / "pocket", copy)
    (copy / "MODEL_CARD.md").write_text("another")
    assert identify(copy).digest == POCKET.digest
    scheduler = copy / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("v_prediction", "epsilon"))
    assert identify(copy).digest != POCKET.digest


async def test_a_file_from_elsewhere_is_linked_into_the_data_folder(settings: Settings, checkpoint: Path) -> None:
    shelf = Shelf()
    row = await add_file(shelf, settings, "My Dream", checkpoint, "model", "sd15")
    assert shelf.rows == [row]
    assert (row.name, row.family, row.source) == ("My Dream", "sd15", "file:")
    assert row.path == f"models/My-Dream-{row.digest[:10]}.safetensors"
    assert row.version == row.digest[:10]
    place = locate(row, settings)
    assert identify(place) == (row.digest, row.size)
    assert place.stat().st_ino == checkpoint.stat().st_ino
    # Adding it again gives the same row.
    assert await add_file(shelf, settings, "My Dream", checkpoint, "model", "sd15") == row
    assert list((settings.data_path / "models").glob(".adding-*")) == []


async def test_a_file_is_copied_where_it_cannot_be_linked(
    settings: Settings, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    row = await add_file(Shelf(), settings, "dreamy", checkpoint, "model", "sd15")
    assert locate(row, settings).read_bytes() == checkpoint.read_bytes()


async def test_a_file_already_there_stays_where_it_is(settings: Settings, checkpoint: Path) -> None:
    inside = settings.data_path / "models" / "mine" / "dreamy.safetensors"
    inside.parent.mkdir(parents=True)
    shutil.copy(checkpoint, inside)
    row = await add_file(Shelf(), settings, "dreamy", inside, "model", "sd15")
    assert row.path == "mine/dreamy.safetensors"
    assert locate(row, settings) == inside


async def test_a_diffusers_folder_joins_whole(settings: Settings) -> None:
    row = await add_file(Shelf(), settings, "copy", HERE / "pocket", "model", "sd15")
    assert (row.digest, row.size) == (POCKET.digest, POCKET.size)
    assert (locate(row, settings) / "unet" / "config.json").is_file()


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
async def test_a_lora_joins_with_what_its_header_says(settings: Settings, tmp_path: Path, layout: str) -> None:
    path = make_lora(tmp_path / "wobbly.safetensors", layout, rank=6)  # type: ignore[arg-type]
    row = await add_file(Shelf(), settings, "wobbly", path, "lora", "sd15")
    assert isinstance(row, LoraRow)
    words = ["pocket style", "wobbly"] if layout == "kohya" else []
    assert row.traits == {"format": layout, "rank": 6, "trigger_words": words, "autov3": autov3(path)}
    assert row.path.startswith("loras/wobbly-")


@pytest.mark.parametrize("name", ["weights.ckpt", "weights.pt", "weights.bin", "weights.PTH", "weights.pkl"])
@pytest.mark.parametrize("kind", ["model", "lora"])
async def test_pickles_are_refused_by_name(settings: Settings, tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidRequest, match=r"pickled.*safetensors"):
        await add_file(Shelf(), settings, "evil", path, kind, "sd15")
    assert not (settings.data_path / "models").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04.", b"\xff" * 100, (5).to_bytes(8, "little") + b"12345", (2).to_bytes(8, "little") + b"{}"],
)
async def test_what_only_calls_itself_safetensors_is_refused(
    settings: Settings, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="not a whole safetensors"):
        await add_file(Shelf(), settings, "odd", path, "model", "sd15")


async def test_half_a_download_is_refused(settings: Settings, tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-4])
    with pytest.raises(InvalidRequest, match="not a whole safetensors"):
        await add_file(Shelf(), settings, "half", path, "model", "sd15")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("a.hada_w1_a", "LoHa"),
        ("a.lokr_w1", "LoKr"),
        ("a.dora_scale", "DoRA"),
        ("a.lora_magnitude_vector.weight", "DoRA"),
        ("a.lora_mid.weight", "Tucker"),
        ("a.oft_blocks", "OFT"),
    ],
)
async def test_adapters_that_cannot_be_applied_are_refused(
    settings: Settings, tmp_path: Path, key: str, kind: str
) -> None:
    path = tmp_path / "adapter.safetensors"
    weights = {key: np.zeros((2, 2), np.float32), "a.lora_down.weight": np.zeros((2, 2), np.float32)}
    save_file(weights, path)
    with pytest.raises(InvalidRequest, match=kind):
        await add_file(Shelf(), settings, "adapter", path, "lora", "sd15")


async def test_models_and_loras_are_not_mixed_up(settings: Settings, tmp_path: Path, checkpoint: Path) -> None:
    lora = make_lora(tmp_path / "lora.safetensors")
    with pytest.raises(InvalidRequest, match="holds a LoRA"):
        await add_file(Shelf(), settings, "a", lora, "model", "sd15")
    with pytest.raises(InvalidRequest, match="no LoRA weights"):
        await add_file(Shelf(), settings, "a", checkpoint, "lora", "sd15")


async def test_a_folder_needs_safetensors_in_every_part(settings: Settings, tmp_path: Path) -> None:
    copy = tmp_path / "folder"
    shutil.copytree(HERE / "pocket", copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InvalidRequest, match=r"folder/unet has only pickled"):
        await add_file(Shelf(), settings, "a", copy, "model", "sd15")
    (copy / "model_index.json").unlink()
    with pytest.raises(InvalidRequest, match=r"model_index\.json"):
        await add_file(Shelf(), settings, "a", copy, "model", "sd15")


@pytest.mark.parametrize(
    ("name", "kind", "family", "field"),
    [
        ("", "model", "sd15", "name"),
        ("../up", "model", "sd15", "name"),
        ("a/b", "model", "sd15", "name"),
        ("ok", "vae", "sd15", "kind"),
        ("ok", "model", "sd99", "family"),
    ],
)
async def test_bad_names_kinds_and_families_are_refused(
    settings: Settings, checkpoint: Path, name: str, kind: str, family: str, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await add_file(Shelf(), settings, name, checkpoint, kind, family)
    assert caught.value.details["field"] == field


async def test_a_missing_path_is_not_found(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await add_file(Shelf(), settings, "a", tmp_path / "none.safetensors", "model", "sd15")


def test_rows_cannot_point_out_of_their_root(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "data" / "models").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "data" / "models" / "link").symlink_to(tmp_path / "secret")
    for path in ("../../secret", str(tmp_path / "secret"), "link"):
        with pytest.raises(InvalidRequest, match="leads out"):
            locate(dataclasses.replace(POCKET, source="file:", path=path), settings)
    with pytest.raises(InvalidRequest, match="leads out"):
        locate(dataclasses.replace(POCKET, path="../settings.py"), settings)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        locate(dataclasses.replace(POCKET, source="https://example.com"), settings)
    with pytest.raises(NotFound):
        locate(dataclasses.replace(POCKET, source="file:", path="none"), settings)
