"""Operator's commands that need no running service: database, models, topics."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from streamapp.cli import main
from streamapp.models.catalogue import locate
from streamapp.models.shipped import POCKET
from streamapp.settings import load_settings

POCKET_FOLDER = Path(__file__).parents[2] / "streamapp" / "models" / "pocket"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def names() -> list[str]:
    return sorted(row["name"] for row in orjson.loads(run("models", "list", "--json").stdout))


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    # Nobody serves here: lists come from the database.
    monkeypatch.setenv("STREAMAPP_PORT", "9")


def test_upgrading_twice_leaves_tables_with_the_model_that_ships() -> None:
    for _ in range(2):
        result = run("db", "upgrade")
        assert result.exit_code == 0, result.output
        assert "is up to date" in result.stdout
    assert names() == [POCKET.name]


def test_models_are_listed_for_people() -> None:
    head, line = run("models").stdout.splitlines()
    assert head.split() == ["NAME", "VERSION", "FAMILY", "SIZE", "STATE"]
    assert line.startswith(POCKET.name)
    assert [line.split()[0] for line in run("loras").stdout.splitlines()] == ["NAME", "duotone", "ink"]


def test_a_local_model_joins_the_registry_by_its_digest(tmp_path: Path) -> None:
    shutil.copytree(POCKET_FOLDER, tmp_path / "weights")
    result = run("models", "add", "mine", "weights", "--family", "sd15", "--json")
    assert result.exit_code == 0, result.output
    row = orjson.loads(result.stdout)
    assert (row["name"], row["family"], len(row["digest"])) == ("mine", "sd15", 64)
    assert "mine" in names()


def test_pickled_weights_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04K\x01.")
    result = run("models", "add", "mine", "model.ckpt", "--family", "sd15")
    assert result.exit_code == 2
    assert "safetensors" in result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    result = run("models", "add", "mine", "model.safetensors", "--family", "sd99")
    assert result.exit_code == 2
    assert "sd99" in result.stderr


def test_topics_are_created_once_and_then_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAPP_PARTITIONS", "3")
    created = orjson.loads(run("topics", "create", "--json").stdout)["created"]
    assert {"sd15_tasks", "sd15_tasks_urgent", "worker_status"} <= set(created)
    assert orjson.loads(run("topics", "create", "--json").stdout) == {"created": []}
    listed = {row["name"]: row["partitions"] for row in orjson.loads(run("topics", "list", "--json").stdout)}
    assert (listed["sd15_tasks"], listed["sd15_tasks_urgent"], listed["worker_status"]) == (3, 3, 1)

    monkeypatch.setenv("STREAMAPP_PARTITIONS", "4")
    refused = run("topics", "create")
    assert refused.exit_code == 78
    assert "STREAMAPP_PARTITIONS=3" in refused.stderr


def test_the_model_that_ships_is_where_its_row_says() -> None:
    assert (locate(POCKET, load_settings()) / "model_index.json").is_file()


def test_a_task_that_is_not_there_cannot_be_replayed() -> None:
    run("db", "upgrade")
    result = run("replay", "img-1")
    assert result.exit_code == 1
    assert result.stdout == "img-1 left alone: missing\n"
