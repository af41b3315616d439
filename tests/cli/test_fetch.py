"""``models|loras pull, verify, remove`` as an operator types them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from click.testing import CliRunner, Result

from streamapp.cli import main
from tests.models.publisher import Publisher
from tests.models.sites import Double, playing, sd15_file


@pytest.fixture
def double() -> Double:
    return Double(Publisher(sd15_file()))


@pytest.fixture(autouse=True)
async def sites(double: Double, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[None]:
    async with playing(double) as url:
        monkeypatch.chdir(tmp_path)
        for name, value in (("CIVITAI_URL", url), ("HUB_URL", url), ("ALLOW_PRIVATE_SOURCES", "true"), ("PORT", "9")):
            monkeypatch.setenv(f"STREAMAPP_{name}", value)
        yield


async def run(*arguments: str) -> Result:
    """In a thread, because commands run a loop of their own."""
    return await asyncio.to_thread(CliRunner().invoke, main, arguments)


async def listed() -> list[str]:
    rows: list[dict[str, Any]] = orjson.loads((await run("models", "list", "--json")).stdout)
    return sorted(row["name"] for row in rows)


async def test_a_pulled_model_is_listed_verified_and_removed(double: Double, tmp_path: Path) -> None:
    result = await run("models", "pull", "civitai:123@456", "--name", "dreamy", "--json")
    assert result.exit_code == 0, result.output
    row = orjson.loads(result.stdout)
    assert (row["name"], row["digest"]) == ("dreamy", double.publisher.digest)
    assert await listed() == ["dreamy", "pocket"]
    file = tmp_path / "data" / "models" / row["path"]

    assert (await run("models", "verify")).exit_code == 0
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = await run("models", "verify", "dreamy", "--no-fetch")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].split() == ["dreamy", row["version"], "changed"]

    result = await run("models", "remove", "dreamy")
    assert "MB freed" in result.stdout
    assert not file.exists()
    assert await listed() == ["pocket"]


async def test_a_file_whose_bytes_changed_is_fetched_again(double: Double, tmp_path: Path) -> None:
    row = orjson.loads((await run("models", "pull", "civitai:123@456", "--name", "dreamy", "--json")).stdout)
    file = tmp_path / "data" / "models" / row["path"]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    again = orjson.loads((await run("models", "pull", "dreamy", "--json")).stdout)
    assert (again["name"], again["digest"]) == ("dreamy", double.publisher.digest)
    assert (await run("models", "verify", "dreamy")).exit_code == 0


async def test_verify_fetches_what_has_changed_again_or_says_why_not(double: Double, tmp_path: Path) -> None:
    row = orjson.loads((await run("models", "pull", "civitai:123@456", "--name", "dreamy", "--json")).stdout)
    file = tmp_path / "data" / "models" / row["path"]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    double.publisher.faults = ["404"]
    result = await run("models", "verify", "dreamy")
    assert result.exit_code == 1
    assert "was not fetched again" in result.stdout
    assert file.read_bytes() != double.publisher.body
    result = await run("models", "verify", "dreamy")
    assert result.exit_code == 0, result.output
    assert "fetched again" in result.stdout
    assert file.read_bytes() == double.publisher.body


async def test_what_is_pinned_stays_pinned_when_it_is_pulled_again() -> None:
    async def pinned() -> bool:
        listed = await run("models", "list", "--json")
        return any(row["traits"].get("pinned") for row in orjson.loads(listed.stdout) if row["name"] == "dreamy")

    await run("models", "pull", "civitai:123@456", "--name", "dreamy")
    assert not await pinned()
    assert (await run("models", "pin", "dreamy")).exit_code == 0
    assert (await run("models", "pull", "dreamy")).exit_code == 0
    assert await pinned()
    assert (await run("models", "unpin", "dreamy")).exit_code == 0
    assert not await pinned()
    assert "is not registered" in (await run("loras", "pin", "dreamy")).stderr


async def test_files_that_another_name_uses_stay(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert (await run("models", "pull", "owner/name", "--name", name)).exit_code == 0
    assert (await run("models", "remove", "one")).exit_code == 0
    assert (await run("models", "verify", "two")).exit_code == 0
    assert (await run("models", "remove", "two", "--keep-files")).exit_code == 0
    assert len(list((tmp_path / "data" / "models" / "models").glob("*.safetensors"))) == 1


async def test_files_that_another_model_takes_its_parts_from_stay(tmp_path: Path) -> None:
    assert (await run("models", "pull", "owner/name", "--name", "lender")).exit_code == 0
    (own := tmp_path / "own.safetensors").write_bytes(sd15_file(more=np.ones(2, np.float32)))
    assert (await run("models", "add", "taker", str(own), "--family", "sd15")).exit_code == 0
    assert (await run("models", "components", "taker", "vae=lender")).exit_code == 0
    assert [one["freed"] for one in orjson.loads((await run("models", "remove", "lender", "--json")).stdout)] == [0]
    assert len(list((tmp_path / "data" / "models" / "models").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("models", "pull", "dreamshaper"), "is no reference to a model"),
        (("models", "pull", "civitai:123@7"), "no version 7"),
        (("models", "remove", "dreamshaper"), "is not registered here"),
        (("loras", "verify", "crayon"), "is not registered here"),
    ],
)
async def test_what_cannot_be_done_is_one_sentence(arguments: tuple[str, ...], says: str) -> None:
    result = await run(*arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output
