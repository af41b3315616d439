"""The command line: help, refusals as one sentence, exit codes, and what scripts read."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from streamapp.cli import main
from streamapp.cli.tasks import Control, Lora
from tests.cli.service_double import PIXEL, Double

REPOSITORY = Path(__file__).parents[2]
DONE = {"status": "succeeded", "progress": 100, "images": [{"url": "/files/a.png"}], "text": "a cat"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("up", "worker", "web", "submit", "tasks", "cancel", "models", "topics", "db", "doctor", "Exit codes"):
        assert word in result.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from streamapp.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0; "
        "print(sorted({'faust', 'torch', 'sqlalchemy', 'aiohttp', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("role", ["worker", "web"])
def test_roles_that_share_a_broker_refuse_the_embedded_one(role: str) -> None:
    result = run(role)
    assert result.exit_code == 78
    assert "STREAMAPP_BROKER=kafka://" in result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_setting_is_a_sentence_that_names_the_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAPP_PROT", "8001")
    result = run("tasks")
    assert result.exit_code == 78
    assert "did you mean STREAMAPP_PORT?" in result.stderr


def test_nobody_at_the_address_exits_3() -> None:
    result = run("show", "img-1", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: nothing answers at http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--size", "big"), "WIDTHxHEIGHT"),
        (("--lora", "ink:much"), "NAME:WEIGHT"),
        (("--priority", "7"), "range"),
        (("--image", "nowhere.png"), "nowhere.png cannot be read"),
        (("--strength", "0"), "range"),
        (("--url", "localhost:8000"), "is not an address"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(arguments: tuple[str, ...], sentence: str) -> None:
    result = run("submit", "a cat", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_settings_hide_secrets_and_mark_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAPP_KAFKA_PASSWORD", "swordfish")
    monkeypatch.setenv("STREAMAPP_DATABASE", "mysql+aiomysql://me:swordfish@db/streamapp")
    text, data = run("settings").stdout, orjson.loads(run("settings", "--json").stdout)
    assert "swordfish" not in text + str(data)
    assert data["STREAMAPP_DATABASE"] == ["mysql+aiomysql://me:***@db/streamapp", True]
    assert data["STREAMAPP_PORT"] == [8000, False]


def test_the_settings_page_is_the_generated_one() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    assert run("settings", "--markdown").stdout == page, "run: streamapp settings --markdown > docs/settings.md"


@pytest.fixture
def double() -> Double:
    return Double(deque([{"status": "queued", "progress": 0}, DONE]))


@pytest.fixture
async def url(double: Double) -> AsyncIterator[str]:
    async with TestServer(double.app()) as server:
        yield str(server.make_url("/"))


async def submit(url: str, *arguments: str) -> Result:
    """The command in a thread: it runs an event loop of its own."""
    import asyncio

    return await asyncio.to_thread(run, "submit", "a cat", "--url", url, *arguments)


async def test_submit_sends_only_what_was_asked_and_saves_the_pictures(
    url: str, double: Double, tmp_path: Path
) -> None:
    result = await submit(
        url, "--lora", "ink:0.5", "--size", "512×512", "--n", "2", "-o", "pictures", "--priority", "1"
    )
    assert result.exit_code == 0, result.stderr
    sent: dict[str, Any] = double.submitted[0]
    assert sent["text"] == "a cat"
    assert sent["params"] == {
        "loras": [{"name": "ink", "weight": 0.5}],
        "resolution": "512x512",
        "batch_size": 2,
    }
    assert sent["priority"] == 1
    assert result.stdout == "pictures/img-1-0.png\n"
    assert (tmp_path / "pictures" / "img-1-0.png").read_bytes() == PIXEL


async def test_a_picture_is_sent_as_a_file_or_named(url: str, double: Double) -> None:
    Path("red.png").write_bytes(b"a picture")
    result = await submit(url, "--no-wait", "--image", "red.png", "--mask", "sha256:ab", "--strength", "0.5")
    assert result.exit_code == 0, result.stderr
    assert double.submitted[0]["params"] == {"init_image": "YSBwaWN0dXJl", "mask": "sha256:ab", "strength": 0.5}


async def test_submit_without_waiting_prints_the_task(url: str) -> None:
    result = await submit(url, "--no-wait")
    assert result.stdout == "img-1\n"


async def test_json_names_the_files_and_nothing_else_is_on_stdout(url: str) -> None:
    data = orjson.loads((await submit(url, "--json")).stdout)
    assert data["status"] == "succeeded"
    assert data["files"] == ["out/img-1-0.png"]


async def test_a_task_without_a_picture_exits_4_with_the_reason(url: str, double: Double) -> None:
    double.events = False
    double.states = deque([{"status": "failed", "progress": 10, "error": {"code": "x", "message": "out of memory"}}])
    result = await submit(url)
    assert result.exit_code == 4
    assert "img-1 failed: out of memory" in result.stderr


async def test_a_refusal_of_the_service_is_its_own_sentence(url: str, double: Double) -> None:
    double.refusals.append((400, {}, {"code": "invalid_request", "message": "sampler: try ddim"}))
    result = await submit(url, "--sampler", "magic")
    assert result.exit_code == 2
    assert result.stderr == "Error: sampler: try ddim\n"


@pytest.mark.parametrize(
    ("said", "name", "weight"),
    [
        ("ink", "ink", 1.0),
        ("ink:0.5", "ink", 0.5),
        ("civitai:123", "civitai:123", 1.0),
        ("civitai:123@456", "civitai:123@456", 1.0),
        ("civitai:123@456:0.8", "civitai:123@456", 0.8),
        ("urn:air:sdxl:lora:civitai:123@456:-1", "urn:air:sdxl:lora:civitai:123@456", -1.0),
        ("https://civitai.com/models/1", "https://civitai.com/models/1", 1.0),
        ("owner/name:ink.safetensors", "owner/name:ink.safetensors", 1.0),
    ],
)
def test_a_lora_is_named_with_or_without_its_weight(said: str, name: str, weight: float) -> None:
    assert Lora().convert(said, None, None) == {"name": name, "weight": weight}


@pytest.mark.parametrize(
    ("said", "control"),
    [
        ("edges=FILE", {"model": "edges"}),
        ("edges=FILE:0.8", {"model": "edges", "scale": 0.8}),
        ("edges=FILE:canny", {"model": "edges", "preprocessor": "canny"}),
        ("civitai:1@2=FILE:1.5:canny", {"model": "civitai:1@2", "scale": 1.5, "preprocessor": "canny"}),
    ],
)
def test_a_control_is_a_model_and_a_picture(tmp_path: Path, said: str, control: dict[str, Any]) -> None:
    (tmp_path / "photo.png").write_bytes(b"abc")
    given = Control().convert(said.replace("FILE", str(tmp_path / "photo.png")), None, None)
    assert given == {**control, "image": "YWJj"}


@pytest.mark.parametrize(
    ("said", "image", "scale"),
    [
        ("edges=https://x:8000/a.png", "https://x:8000/a.png", None),
        ("edges=https://x:8000/a.png:0.5", "https://x:8000/a.png", 0.5),
        ("edges=https://x:8000", "https://x:8000", None),
        ("edges=sha256:0a:1", "sha256:0a", 1.0),
        ("edges=sha256:12", "sha256:12", None),
    ],
)
def test_a_controls_picture_may_be_an_address(said: str, image: str, scale: float | None) -> None:
    given = Control().convert(said, None, None)
    assert (given["image"], given.get("scale")) == (image, scale)


@pytest.mark.parametrize("said", ["edges", "=photo.png", "edges=", "edges=no-such-file.png"])
def test_a_control_without_either_is_refused(said: str) -> None:
    with pytest.raises(click.BadParameter):
        Control().convert(said, None, None)
