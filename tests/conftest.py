"""Fixtures for every test: real servers, a clean environment, no network but loopback, nothing left running."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import pytest
from playwright.async_api import Page

from tests.servers import S3, Chromium, Kafka, MariaDB, Missing, Server, network
from tests.servers import leftovers as processes

STRICT = "STREAMAPP_TESTS_STRICT"
#: Why a server could not be had, by name; shown at the end, since a skip is easily overlooked.
MISSING = pytest.StashKey[dict[str, str]]()
LEFT = pytest.StashKey[list[processes.Leftover]]()

T = TypeVar("T", bound=Server)


def pytest_configure(config: pytest.Config) -> None:
    """Before anything of the project is imported: one thread for torch, no hub, none of the caller's settings."""
    config.stash[MISSING] = {}
    for name in [name for name in os.environ if foreign(name)]:
        del os.environ[name]
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    processes.mark()
    network.install()
    # A time limit around the run ends it with SIGTERM: fixtures must still stop their servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def foreign(name: str) -> bool:
    """Variables that steer the service or its storage client and so would steer a test."""
    return name.startswith(("STREAMAPP_", "AWS_")) and name not in {STRICT, "AWS_EC2_METADATA_DISABLED"}


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    """A test that sets variables without ``monkeypatch`` fails here instead of steering the next one."""
    yield
    leaked = sorted(name for name in os.environ if foreign(name))
    for name in leaked:
        del os.environ[name]
    assert not leaked, f"the test left variables behind: {', '.join(leaked)} (use monkeypatch.setenv)"


@pytest.fixture(autouse=True)
def loopback_only() -> Iterator[list[str]]:
    """What this test tried to reach beyond loopback; anything left in the list at its end fails it."""
    network.attempts.clear()
    yield network.attempts
    tried = list(network.attempts)
    network.attempts.clear()
    assert not tried, f"tests may reach loopback only; tried: {', '.join(tried)}"


@contextmanager
def running(config: pytest.Config, build: Callable[[], T]) -> Iterator[T]:
    """A started server; without its program a loud skip, or a failure where tests are strict."""
    server = build()
    try:
        server.start()
    except Missing as error:
        unavailable(config, server.name, error)
    try:
        yield server
    finally:
        server.close()


def unavailable(config: pytest.Config, name: str, error: Missing) -> NoReturn:
    """Skip the test, or fail it in strict runs, and remember the reason for the summary."""
    config.stash[MISSING][name] = str(error)
    reason = f"{name} is missing: {error}"
    if strict():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def strict() -> bool:
    """Whether a missing server is a failure: in CI, where everything can be installed."""
    return os.environ.get(STRICT, "") not in {"", "0"}


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[Kafka]:
    """One Kafka broker for all tests; a test that kills it starts it again."""
    with running(pytestconfig, Kafka) as server:
        yield server


@pytest.fixture
def kafka_url(kafka: Kafka) -> str:
    """The broker's address as ``STREAMAPP_BROKER``; topics outlive a test, so use an app id of your own."""
    return kafka.url


@pytest.fixture(scope="session")
def mariadb(pytestconfig: pytest.Config) -> Iterator[MariaDB]:
    """One MariaDB for all tests."""
    with running(pytestconfig, MariaDB) as server:
        yield server


@pytest.fixture
def mariadb_url(mariadb: MariaDB) -> Iterator[str]:
    """A fresh empty database for this test, as ``STREAMAPP_DATABASE``."""
    url = mariadb.create_database()
    yield url
    if mariadb.running:
        mariadb.drop_database(url)


@pytest.fixture(scope="session")
def s3(pytestconfig: pytest.Config) -> Iterator[S3]:
    """One S3 endpoint for all tests."""
    with running(pytestconfig, S3) as server:
        yield server


@pytest.fixture
def s3_env(s3: S3) -> dict[str, str]:
    """The variables with which the service uses a fresh bucket: storage, endpoint and keys."""
    return s3.environment(s3.create_bucket())


@pytest.fixture
async def chromium_page(pytestconfig: pytest.Config) -> AsyncIterator[Page]:
    """An empty page in a fresh browser."""
    try:
        browser = await asyncio.to_thread(Chromium)
    except Missing as error:
        unavailable(pytestconfig, Chromium.name, error)
    async with browser.page() as page:
        yield page


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves processes behind, and end them."""
    gc.collect()
    end = time.monotonic() + 5
    while (left := processes.leftovers()) and time.monotonic() < end:
        time.sleep(0.2)
    processes.kill(left)
    session.config.stash[LEFT] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say at the very end what did not run and what was left running."""
    if missing := config.stash[MISSING]:
        terminalreporter.section("SERVERS MISSING: their tests did not run", sep="!", red=True, bold=True)
        for name, reason in missing.items():
            terminalreporter.line(f"{name}: {reason}")
        terminalreporter.line("Install them with `python -m tests.servers install`.")
    if left := config.stash.get(LEFT, []):
        terminalreporter.section("PROCESSES LEFT BEHIND (ended now): the run fails", sep="!", red=True, bold=True)
        for leftover in left:
            terminalreporter.line(f"{leftover.pid}: {leftover.line}")
