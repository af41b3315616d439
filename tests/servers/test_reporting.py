"""The rules around every test, seen from outside: small runs of pytest under this project's own conftest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import leftovers
from tests.source import ROOT

Run = Callable[..., tuple[int, str]]

NEEDS_A_SERVER = """
import pytest
from tests.conftest import unavailable
from tests.servers import Missing

@pytest.fixture
def server(pytestconfig):
    unavailable(pytestconfig, "kafka", Missing("java was not found. Install Java."))

def test_talks_to_it(server):
    raise AssertionError("must not run")
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run one test file under the project's conftest; exit code and output."""

    def run(source: str, **env: str) -> tuple[int, str]:
        (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
        (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
        (tmp_path / "test_it.py").write_text(source)
        kept = {name: value for name, value in os.environ.items() if name not in {leftovers.MARK, "PYTEST_ADDOPTS"}}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": str(ROOT), "STREAMAPP_TESTS_STRICT": "", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    return run


def test_a_missing_server_is_a_loud_skip(run: Run) -> None:
    code, said = run(NEEDS_A_SERVER)
    assert code == 0
    assert "1 skipped" in said
    assert "SERVERS MISSING" in said
    assert "kafka: java was not found. Install Java." in said


def test_a_missing_server_is_a_failure_where_tests_are_strict(run: Run) -> None:
    code, said = run(NEEDS_A_SERVER, STREAMAPP_TESTS_STRICT="1")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "java was not found. Install Java." in said
    assert "skipped" not in said.splitlines()[-1]


def test_a_test_that_reaches_out_fails_even_if_the_code_hides_it(run: Run) -> None:
    code, said = run(
        "import contextlib, socket\n"
        "def test_hides_it():\n"
        "    with contextlib.suppress(OSError):\n"
        "        socket.create_connection(('192.0.2.1', 443), timeout=1)\n"
    )
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "tests may reach loopback only; tried: 192.0.2.1:443" in said


def test_asyncio_reaches_loopback_only_too(run: Run) -> None:
    code, said = run(
        "import asyncio, contextlib\n"
        "async def test_hides_it():\n"
        "    with contextlib.suppress(OSError):\n"
        "        await asyncio.open_connection('192.0.2.1', 443)\n"
    )
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "tried: 192.0.2.1:443" in said


def test_a_test_that_leaves_a_setting_behind_fails(run: Run) -> None:
    code, said = run("import os\ndef test_leaks(): os.environ['STREAMAPP_PORT'] = '1'\n")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "the test left variables behind: STREAMAPP_PORT" in said


def test_the_callers_settings_do_not_reach_a_test(run: Run) -> None:
    code, _ = run(
        "import os\ndef test_clean(): assert not {'STREAMAPP_PORT', 'AWS_PROFILE'} & os.environ.keys()\n",
        STREAMAPP_PORT="1",
        AWS_PROFILE="mine",
    )
    assert code == 0


def test_a_run_that_leaves_a_process_behind_fails_and_ends_it(run: Run) -> None:
    code, said = run(
        "import subprocess\ndef test_leaves(): subprocess.run(['sh', '-c', 'sleep 61 >/dev/null 2>&1 &'], check=True)\n"
    )
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "PROCESSES LEFT BEHIND" in said
    found = re.search(r"^(\d+): sleep 61$", said, re.MULTILINE)
    assert found
    end = time.monotonic() + 10
    while leftovers.alive(int(found[1])):
        assert time.monotonic() < end, "it was not ended"
        time.sleep(0.05)
