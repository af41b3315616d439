"""Sites and files that want to write where they must not, or to fill memory: refused, and nothing lies outside."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from streamapp.db import ModelRow
from streamapp.errors import AppError, InvalidRequest
from streamapp.models.catalogue import add_file, locate
from streamapp.models.pull import open_sites, pull
from streamapp.models.registered import find
from streamapp.models.safe import parse_header
from streamapp.settings import Settings
from tests.models.publisher import Publisher, checkpoint, serving
from tests.models.sites import Double, file, playing, sd15_file, version
from tests.models.test_catalogue import Shelf
from tests.models.test_download import FETCH

OUT = "../../../../outside"
TITLES = [
    OUT,
    "/etc/passwd",
    "..",
    ".hidden",
    "C:\\windows\\x",
    "a\x00b",
    "\u202ecod.exe",
    "x" * 500,
    "",
    "\n",
    "CON",
    "~root",
]


@pytest.fixture
def double() -> Double:
    return Double(Publisher(sd15_file()))


@pytest.fixture
async def settings(double: Double, tmp_path: Path) -> AsyncIterator[Settings]:
    async with playing(double) as url:
        yield Settings(
            data_dir=tmp_path / "deep" / "er" / "data", civitai_url=url, hub_url=url, allow_private_sources=True,
            civitai_token=SecretStr("c-swordfish"), hub_token=SecretStr("h-swordfish"),
        )  # fmt: skip


async def pulled(settings: Settings, text: str) -> Any:
    async with open_sites(settings) as sites:
        return await pull(sites, settings, text)


def outside(settings: Settings, tmp_path: Path) -> list[Path]:
    """Files that lie anywhere but in the store."""
    store = settings.data_path / "models"
    return [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(store)]


@pytest.mark.parametrize("title", TITLES)
async def test_titles_and_versions_of_a_site_stay_names(
    settings: Settings, double: Double, title: str, tmp_path: Path
) -> None:
    about = {"name": title, "type": "Checkpoint"}
    double.version = version(name=title, model=about, files=[file(double.publisher, name=title)])
    row = await pulled(settings, "civitai:123@456")
    assert locate(row, settings).read_bytes() == double.publisher.body
    assert locate(row, settings).parent == settings.data_path / "models" / "models"
    assert outside(settings, tmp_path) == []


@pytest.mark.parametrize("digest", [OUT, "/etc/passwd", "..", "a" * 63 + "/", "g" * 64, "a" * 64 + "\n"])
async def test_a_digest_that_is_none_becomes_no_path(
    settings: Settings, double: Double, digest: str, tmp_path: Path
) -> None:
    double.version["files"] = [file(double.publisher, hashes={"SHA256": digest})]
    row = await pulled(settings, "civitai:123@456")
    assert row.digest == double.publisher.digest
    double.repo["siblings"][1]["lfs"]["sha256"] = digest
    with pytest.raises(AppError) as caught:
        await pulled(settings, "owner/name")
    assert caught.value.code == "fetch_failed"
    assert outside(settings, tmp_path) == []


async def test_files_of_a_repository_stay_names(settings: Settings, double: Double, tmp_path: Path) -> None:
    double.repo |= {"id": OUT, "sha": OUT}
    double.repo["siblings"][1]["rfilename"] = f"{OUT}.safetensors"
    with pytest.raises(AppError):
        await pulled(settings, "owner/name")
    assert outside(settings, tmp_path) == []


@pytest.mark.parametrize("length", [2**32, 2**62, 2**64 - 1, 0, 1])
async def test_a_header_that_claims_more_than_there_is_is_refused_unread(
    settings: Settings, double: Double, length: int, tmp_path: Path
) -> None:
    body = length.to_bytes(8, "little") + bytes(1000)
    (tmp_path / "bomb.safetensors").write_bytes(body)
    with pytest.raises(InvalidRequest, match="not a whole safetensors file"):
        parse_header(tmp_path / "bomb.safetensors", "bomb")
    with pytest.raises(InvalidRequest, match="not a whole safetensors file"):
        await add_file(Shelf(), settings, "bomb", tmp_path / "bomb.safetensors", "lora", "sd15")
    double.publisher.body = body
    double.version["files"] = [file(double.publisher)]
    with pytest.raises(AppError, match="not a whole safetensors file"):
        await pulled(settings, "civitai:123@456")
    left = [path.suffix for path in settings.data_path.rglob("*") if path.is_file()]
    assert set(left) <= {".lock"}, "what was refused still fills the disk"


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F16", "shape": [2**40], "data_offsets": [0, 2**41]}},
        {"a": {"dtype": "F16", "shape": [4], "data_offsets": [0]}},
        {"a": {"dtype": "F16", "shape": [4], "data_offsets": "all"}},
        {"a": "nothing"},
        {"__metadata__": {"a": "b"}},
        [],
    ],
)
def test_a_header_that_lies_about_its_tensors_is_refused(header: Any, tmp_path: Path) -> None:
    raw = json.dumps(header).encode()
    path = tmp_path / "lies.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(InvalidRequest, match="not a whole safetensors file"):
        parse_header(path, "lies")


async def test_links_inside_of_a_folder_do_not_lead_out_of_the_store(settings: Settings, tmp_path: Path) -> None:
    folder = settings.data_path / "models" / "models" / "folder"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "real.safetensors").write_bytes(b"x")
    row = ModelRow("folder", "1", "sd15", "file:", "models/folder", digest="ab" * 32)
    (folder / "unet" / "near.safetensors").symlink_to(folder / "unet" / "real.safetensors")
    assert locate(row, settings) == folder
    (tmp_path / "secret.json").write_text("{}")
    (folder / "unet" / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(InvalidRequest, match=r"unet/config\.json is a link that leads out"):
        locate(row, settings)


async def test_tokens_are_in_no_log_and_in_no_message(
    settings: Settings, double: Double, capfd: pytest.CaptureFixture[str]
) -> None:
    for status in (401, 403, 500):
        double.status = status
        for text in ("civitai:123@456", "owner/name"):
            with pytest.raises(AppError) as caught:
                await pulled(settings, text)
            assert "swordfish" not in str(caught.value.as_dict())
    double.status = 200
    double.publisher.faults = ["html"]
    with pytest.raises(AppError, match="web page instead of the file"):
        await pulled(settings, "civitai:123@456")
    await pulled(settings, "civitai:123@456")
    assert "swordfish" not in "".join(capfd.readouterr())


async def test_two_processes_that_want_the_same_file_fetch_it_once(tmp_path: Path) -> None:
    publisher, target = Publisher(checkpoint(6_000_000), faults=["drop"]), tmp_path / "dream.safetensors"
    async with serving(publisher) as url:
        children = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", FETCH, url, str(target), stdout=-3)
            for _ in range(2)
        ]
        async with asyncio.timeout(60):
            assert [await child.wait() for child in children] == [0, 0]
    assert hashlib.sha256(target.read_bytes()).hexdigest() == publisher.digest
    assert publisher.sent == len(publisher.body), "it was fetched twice"


def test_a_path_that_an_operator_registered_names_its_row() -> None:
    row = ModelRow("dream", "1", "sd15", "file:", "models/dream-0123456789.safetensors", digest="ab" * 32)
    other = replace(row, name="other", path="models/other.safetensors")
    assert find("models/dream-0123456789.safetensors", [row, other]) == row
    assert find("models/nothing.safetensors", [row, other]) is None
