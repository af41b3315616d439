"""The doctor: what it finds present, what it finds missing, and that it says how to get it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from streamapp.cli import main
from streamapp.db import upgrade
from streamapp.doctor import Check, examine
from streamapp.settings import load_settings

NOWHERE = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    # The fake engine needs no torch, whose import takes seconds.
    monkeypatch.setenv("STREAMAPP_ENGINE", "fake")
    monkeypatch.setenv("STREAMAPP_PORT", "0")


async def found(**overrides: Any) -> dict[str, Check]:
    return {check.name: check for check in await examine(load_settings(**overrides))}


async def test_a_fresh_machine_has_all_that_the_service_needs_and_nothing_is_created(tmp_path: Path) -> None:
    checks = await found()
    assert [check for check in checks.values() if check.needed and not check.ok] == []
    assert "will be created" in checks["database"].found
    assert list(tmp_path.iterdir()) == []


async def test_servers_that_do_not_answer_are_missing_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-shown")
    checks = await found(
        broker=f"kafka://{NOWHERE}",
        database=f"mysql+aiomysql://me:not-shown@{NOWHERE}/streamapp",
        storage="s3://bucket",
        s3_endpoint=f"http://{NOWHERE}",
    )
    for name, setting in (("broker", "BROKER"), ("database", "DATABASE"), ("storage", "STORAGE")):
        assert not checks[name].ok
        assert f"STREAMAPP_{setting}" in checks[name].advice
    assert "at most 24 workers per family" in checks["topics"].advice
    assert "not-shown" not in str(checks)


async def test_a_database_of_an_older_release_is_named_with_the_command_that_helps(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'own.db'}"
    (tmp_path / "own.db").touch()
    old = (await found(database=url))["database"]
    assert (old.ok, old.advice) == (False, "`streamapp db upgrade`")
    await upgrade(url)
    assert (await found(database=url))["database"].ok


async def test_a_gpu_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAPP_ENGINE", "process")
    device = (await found(device="cuda:63"))["device"]
    assert not device.ok
    assert "STREAMAPP_DEVICE=cpu" in device.advice


def test_the_command_exits_0_when_all_is_there_and_1_when_not(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = CliRunner().invoke(main, ["doctor", "--json"])
    assert healthy.exit_code == 0
    assert orjson.loads(healthy.stdout)["ok"] is True

    monkeypatch.setenv("STREAMAPP_BROKER", f"kafka://{NOWHERE}")
    sick = CliRunner().invoke(main, ["doctor"])
    assert sick.exit_code == 1
    assert "missing broker" in sick.stdout
    assert "Traceback" not in sick.output
