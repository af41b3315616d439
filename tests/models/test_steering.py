"""ControlNets as weights of the registry: which files are taken, as what, and which are refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from streamapp.db import LoraRow
from streamapp.errors import AppError, Conflict, InvalidRequest
from streamapp.models.catalogue import add_file, locate
from streamapp.models.digest import folder_files, identify
from streamapp.models.kinds import Described, describe
from streamapp.models.safe import read_header
from streamapp.models.steering import engine_name, is_controlnet
from streamapp.models.verified import DamagedWeights, check_weights
from streamapp.settings import Settings
from tests.models.make_controlnet import make_controlnet, make_folder
from tests.models.make_lora import make_lora


class Shelf:
    """A registry of one LoRAs' table."""

    def __init__(self) -> None:
        self.rows: dict[str, LoraRow] = {}

    async def add_model(self, row: Any) -> None:
        raise AssertionError(row)

    async def add_lora(self, row: LoraRow) -> None:
        self.rows[row.name] = row

    async def lora(self, name: str, version: str | None = None) -> LoraRow | None:
        assert version is None
        return self.rows.get(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


async def add(settings: Settings, path: Path, family: str = "sd15", shelf: Shelf | None = None) -> LoraRow:
    row = await add_file(shelf or Shelf(), settings, "edges", path, "controlnet", family)
    assert isinstance(row, LoraRow)
    return row


@pytest.mark.parametrize("layout", ["published", "diffusers"])
@pytest.mark.parametrize(
    ("width", "family", "traits"), [(768, "sd15", {}), (1024, "sd15", {"variant": "sd2"}), (2048, "sdxl", {})]
)
async def test_a_single_file_tells_its_family(
    settings: Settings, tmp_path: Path, layout: Any, width: int, family: str, traits: dict[str, Any]
) -> None:
    path = make_controlnet(tmp_path / "edges.safetensors", layout, width=width)
    assert describe(read_header(path)) == Described("controlnet", family, traits)
    row = await add(settings, path, family)
    assert is_controlnet(row)
    assert (row.family, row.traits, row.path) == (
        family,
        {"kind": "controlnet", **traits},
        f"controlnets/edges-{row.digest[:10]}.safetensors",
    )
    other = "sdxl" if family == "sd15" else "sd15"
    with pytest.raises(InvalidRequest, match=f"ControlNet for family {family}, not {other}"):
        await add(settings, path, other)


async def test_a_folder_is_taken_whole_and_has_the_digest_of_what_is_read(settings: Settings, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "edges")
    (folder / "README.md").write_text("a card")
    row = await add(settings, folder)
    here = locate(row, settings)
    assert [part.name for part in folder_files(here)] == ["config.json", "diffusion_pytorch_model.safetensors"]
    listing = "".join(
        f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n" for part in folder_files(folder)
    )
    assert row.digest == hashlib.sha256(listing.encode()).hexdigest() == identify(here).digest
    check_weights(row, here, tmp_path / "notes")
    (here / "config.json").unlink()
    (here / "config.json").write_text("{}")
    with pytest.raises(DamagedWeights):
        check_weights(row, here, tmp_path / "notes")
    assert engine_name(row) == f"edges ({row.digest[:10]})"


async def test_flux_is_taken_as_a_folder_and_a_union_says_how_many_it_is(settings: Settings, tmp_path: Path) -> None:
    row = await add(settings, make_folder(tmp_path / "all", "FluxControlNetModel", num_mode=10), "flux")
    assert (row.family, row.traits) == ("flux", {"kind": "controlnet", "modes": 10})


def other_file(path: Path, *names: str) -> Path:
    save_file({name: np.zeros((4, 4), np.float32) for name in names}, path)
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "sd3": (lambda at: make_controlnet(at / "a.safetensors"), "sd3", "sd3 take no ControlNet yet; those of sd15, sdxl"),
    "qwen": (lambda at: make_controlnet(at / "a.safetensors"), "qwen_image", "qwen_image take no ControlNet yet"),
    "lora": (lambda at: make_lora(at / "a.safetensors"), "sd15", "holds a LoRA"),
    "model": (lambda at: other_file(at / "a.safetensors", "weight"), "sd15", "holds no ControlNet"),
    "control-lora": (lambda at: other_file(at / "a.safetensors", "lora_controlnet"), "sdxl", "is a Control-LoRA"),
    "lllite": (lambda at: other_file(at / "a.safetensors", "lllite_unet_a.down.0.weight"), "sdxl", "ControlNet-LLLite"),
    "difference": (
        lambda at: make_controlnet(at / "a.safetensors", difference=(1,)), "sd15", "is the difference to a checkpoint"),
    "union": (
        lambda at: make_controlnet(at / "a.safetensors", "diffusers", width=2048, task_embedding=(6, 4)),
        "sdxl", "is a union"),
    "odd size": (lambda at: make_controlnet(at / "a.safetensors", width=96), "sd15", "without its config.json"),
    "flux file": (
        lambda at: other_file(at / "a.safetensors", "controlnet_x_embedder.weight", "controlnet_blocks.0.weight"),
        "flux", "without its config.json"),
    "flux for sd15": (lambda at: make_folder(at / "a", "FluxControlNetModel"), "sd15", "is not of family sd15"),
    "sdxl folder for sd15": (lambda at: make_folder(at / "a", width=2048), "sd15", "for family sdxl, not sd15"),
    "another class": (lambda at: make_folder(at / "a", "SD3ControlNetModel"), "sd15", "SD3ControlNetModel; drawn are"),
    "no folder of one": (lambda at: at, "sd15", "no config.json that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
async def test_what_cannot_steer_is_refused_by_name(settings: Settings, tmp_path: Path, case: str) -> None:
    make, family, says = BAD[case]
    with pytest.raises(AppError, match=says):
        await add(settings, make(tmp_path), family)
    assert not (settings.data_path / "models" / "controlnets").exists()


async def test_a_cut_file_and_a_pickle_are_refused(settings: Settings, tmp_path: Path) -> None:
    path = make_controlnet(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InvalidRequest, match="not a whole safetensors file"):
        await add(settings, path)
    (tmp_path / "a.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidRequest, match="pickled"):
        await add(settings, tmp_path / "a.pth")


async def test_a_name_means_one_thing(settings: Settings, tmp_path: Path) -> None:
    shelf = Shelf()
    await add(settings, make_controlnet(tmp_path / "a.safetensors"), shelf=shelf)
    with pytest.raises(Conflict, match="edges is the name of a ControlNet"):
        await add_file(shelf, settings, "edges", make_lora(tmp_path / "b.safetensors"), "lora", "sd15")


async def test_it_is_no_model(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="streamapp controlnets add"):
        await add_file(Shelf(), settings, "edges", make_controlnet(tmp_path / "a.safetensors"), "model", "sd15")
