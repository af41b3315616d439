"""What ``streamapp doctor`` examines: every dependency, what is there, and how to get what is not."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from streamapp.errors import AppError
from streamapp.settings import Settings
from streamapp.telemetry import scrub

#: What one slow server may take of the operator's time.
PATIENCE_S = 10.0
LOW_DISK_BYTES = 2 * 1024**3
#: Programs that only the tests start, by the name to look for, with the Debian package that brings it.
FOR_TESTS = {
    "java": "default-jre-headless (Apache Kafka)",
    "mvn": "maven (fetches Apache Kafka)",
    "mariadbd": "mariadb-server-core and mariadb-client-core",
    "go": "golang-go (builds the S3 server)",
    "chromium": "chromium (screenshot of the status page)",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``needed`` is False for what only the tests use; ``advice`` says how to get it."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    needed: bool = True


async def examine(settings: Settings) -> list[Check]:
    """Every check, in the order in which a start would meet them; none raises for what is missing."""
    return [
        _python(),
        *_packages(),
        await asyncio.to_thread(_device, settings),
        *await _broker(settings),
        await _asked("database", settings.database_url, _database(settings), "start it, or set STREAMAPP_DATABASE"),
        await _asked("storage", settings.storage_url, _storage(settings), "start it, or set STREAMAPP_STORAGE"),
        _disk(settings),
        _port(settings),
        *_test_programs(),
    ]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check("python", fits, version, "" if fits else "use Python 3.11 or 3.12: `uv python install 3.11`")


def _packages() -> list[Check]:
    """One line when all fit, else one per package that does not."""
    from packaging.requirements import Requirement

    try:
        declared = metadata.requires("streamapp") or []
    except metadata.PackageNotFoundError:
        return [Check("packages", False, "streamapp is not installed", "`make venv`, or `uv pip install -e .`")]
    wanted = [Requirement(line) for line in declared]
    wanted = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    wrong = []
    for item in wanted:
        try:
            version = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or not item.specifier.contains(version, prereleases=True):
            found = f"{version or 'not installed'}, wanted {item.specifier}"
            wrong.append(Check(item.name, False, found, "`uv pip sync requirements.lock`"))
    return wrong or [Check("packages", True, f"all {len(wanted)} as pinned")]


def _device(settings: Settings) -> Check:
    """Imports torch, which takes seconds: run in a thread."""
    if settings.engine == "fake":
        return Check("device", True, "not used by the fake engine")
    try:
        import torch
    except ImportError as error:
        return Check("device", False, f"torch does not load: {error}", "`uv pip sync requirements.lock`")
    if not settings.device.startswith("cuda"):
        more = f"; {torch.cuda.device_count()} GPU present: set STREAMAPP_DEVICE=cuda:0" if _gpus(torch) else ""
        return Check("device", True, f"{settings.device}, torch {torch.__version__}{more}")
    index = int(settings.device.partition(":")[2] or 0)
    if index >= _gpus(torch):
        return Check(
            "device",
            False,
            f"{settings.device}: torch {torch.__version__} sees {_gpus(torch)} GPU",
            "check `nvidia-smi` and the driver, or set STREAMAPP_DEVICE=cpu",
        )
    facts = torch.cuda.get_device_properties(index)
    return Check("device", True, f"{settings.device}, {facts.name}, {facts.total_memory / 1024**3:.0f} GiB")


def _gpus(torch: object) -> int:
    cuda = getattr(torch, "cuda")  # noqa: B009 - torch is imported late, so it has no type here
    return int(cuda.device_count()) if cuda.is_available() else 0


async def _broker(settings: Settings) -> list[Check]:
    from streamapp.broker.admin import open_admin
    from streamapp.topics import catalogue

    workers = f"at most {settings.task_partitions} workers per family share its work"
    if settings.embedded:
        bound = f"{settings.task_partitions} partitions in {settings.log_path.name}; one process does all the work"
        return [Check("broker", True, "embedded://, in the process of `streamapp up`"), Check("topics", True, bound)]

    async def topics() -> str:
        specs = catalogue(settings)
        admin = open_admin(settings)
        await admin.start()
        try:
            await admin.ping()
            found = await admin.partitions([spec.name for spec in specs])
        finally:
            await admin.close()
        missing = [spec.name for spec in specs if spec.name not in found]
        wrong = [f"{s.name} has {found[s.name]}" for s in specs if found.get(s.name, s.partitions) != s.partitions]
        if missing:
            raise Missing(
                f"{len(missing)} of {len(specs)} missing: {', '.join(missing[:4])}", "`streamapp topics create`"
            )
        if wrong:
            raise Missing("; ".join(wrong[:4]), f"set STREAMAPP_PARTITIONS to match, now {settings.task_partitions}")
        return f"all {len(specs)}; {settings.task_partitions} partitions: {workers}"

    async def ping() -> str:
        admin = open_admin(settings)
        await admin.start()
        try:
            await admin.ping()
        finally:
            await admin.close()
        return "answers"

    broker = await _asked("broker", settings.broker, ping, "start it, or set STREAMAPP_BROKER")
    if not broker.ok:
        return [broker, Check("topics", False, "unknown, the broker does not answer", workers)]
    return [broker, await _asked("topics", "", topics, "")]


class Missing(Exception):
    """What a check found wrong, and the advice."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.advice = advice


async def _asked(name: str, address: str, question: Callable[[], Awaitable[str]], advice: str) -> Check:
    """The answer of a server as a check; a slow or failing one is a finding, not an error."""
    prefix = f"{scrub(address)}: " if address else ""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return Check(name, True, f"{prefix}{await question()}")
    except Missing as error:
        return Check(name, False, f"{prefix}{error}", error.advice)
    except TimeoutError:
        return Check(name, False, f"{prefix}no answer in {PATIENCE_S:.0f} s", advice)
    except AppError as error:
        return Check(name, False, scrub(error.message), advice)


def _database(settings: Settings) -> Callable[[], Awaitable[str]]:
    async def ask() -> str:
        from alembic.script import ScriptDirectory

        from streamapp.db import open_database, revision
        from streamapp.db.upgrade import alembic_config

        if not _exists(settings.database_url, "sqlite+aiosqlite:///"):
            return "will be created at the first start"
        database = open_database(settings.database_url)
        await database.start()
        try:
            await database.ping()
        finally:
            await database.close()
        current, newest = (
            await revision(settings.database_url),
            ScriptDirectory.from_config(alembic_config()).get_current_head(),
        )
        if current != newest:
            raise Missing(f"tables are at {current or 'nothing'}, the code wants {newest}", "`streamapp db upgrade`")
        return f"answers, tables at {current}"

    return ask


def _storage(settings: Settings) -> Callable[[], Awaitable[str]]:
    async def ask() -> str:
        from streamapp.storage import open_storage

        if not _exists(settings.storage_url, "file://"):
            return "will be created at the first start"
        storage = open_storage(settings)
        await storage.start()
        try:
            await storage.ping()
        finally:
            await storage.close()
        return "answers"

    return ask


def _disk(settings: Settings) -> Check:
    folder = settings.data_path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1024**3:.1f} GiB free at {settings.data_path}"
    if not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} cannot be written", "set STREAMAPP_DATA_DIR to a folder of this user")
    return Check("disk", free >= LOW_DISK_BYTES, found, "" if free >= LOW_DISK_BYTES else "free some space")


def _port(settings: Settings) -> Check:
    """A taken port is only a finding: it may be this very service."""
    if settings.port == 0:
        return Check("port", True, "a free one is taken at start")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            found = f"{settings.host}:{settings.port} is taken or not allowed ({error.strerror})"
            return Check("port", True, found, "fine when that is this service; else set STREAMAPP_PORT")
    return Check("port", True, f"{settings.host}:{settings.port} is free")


def _test_programs() -> list[Check]:
    lines = []
    for name, package in FOR_TESTS.items():
        path = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
        advice = "" if path else f"only for tests: `make test` installs it as root, else: apt-get install {package}"
        lines.append(Check(name, path is not None, path or "only for tests", advice, needed=False))
    return lines


def _exists(address: str, scheme: str) -> bool:
    """False for an address of a file or folder that is not there yet; servers answer for themselves."""
    return not address.startswith(scheme) or Path(address.removeprefix(scheme)).exists()
