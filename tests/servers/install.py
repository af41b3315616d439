"""Finds or installs the programs behind the test servers, safely when several runs do it at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

#: Package mirrors fail now and then; so does a lock held by another package run.
ATTEMPTS = 3


class Missing(Exception):
    """A program is not on this machine and could not be installed; the message says how to get it."""


def cache_folder() -> Path:
    """Where fetched servers live between runs: the user's cache, never the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "streamapp" / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lock ``name`` among all processes of this user: two test runs install once, not twice."""
    with (cache_folder() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def command(
    arguments: Sequence[str | Path], *, what: str, env: dict[str, str] | None = None, within: float = 900
) -> str:
    """Run a finishing command; its output, or :class:`Missing` with the end of what it said."""
    environment = {**os.environ, **(env or {})}
    try:
        done = subprocess.run(
            [str(part) for part in arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{what} failed: {error}") from error
    if done.returncode:
        raise Missing(f"{what} failed with exit code {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def program(*names: str, packages: Sequence[str], otherwise: str) -> Path:
    """The first of ``names`` on the path, after installing Debian ``packages`` if need be and possible.

    Raises :class:`Missing` naming the program, with ``otherwise`` as what a person can do about it.
    """
    found = find(*names)
    if found is None and debian_root():
        install_packages(tuple(packages))
        found = find(*names)
    if found is None:
        raise Missing(f"{names[0]} was not found. {otherwise}")
    return found


def find(*names: str) -> Path | None:
    """The first of ``names`` on the path; Debian keeps servers in /usr/sbin, which users may lack."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/usr/local/go/bin"])
    for name in names:
        if found := shutil.which(name, path=path):
            return Path(found)
    return None


def debian_root() -> bool:
    """Whether Debian packages can be installed here without asking anybody."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


@cache
def install_packages(packages: tuple[str, ...]) -> None:
    """Install Debian packages without questions and without starting their services; once per process."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    options = ["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3", "-qq"]
    install = ["apt-get", *options, "install", "--yes", "--no-install-recommends", *packages]
    with exclusive("apt"):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # The lists may be absent (containers) or older than the mirror: refresh before each retry.
                if attempt > 1 or not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
                    command(["apt-get", *options, "update"], what="apt-get update", env=quiet)
                command(install, what=f"apt-get install {' '.join(packages)}", env=quiet)
                return
            except Missing:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(2 * attempt)
