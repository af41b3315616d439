"""Finds processes that a test run started and left behind, even those whose parent is gone."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass

import psutil

#: Inherited by everything a test run starts; the value tells runs on one machine apart.
MARK = "TESTS_RUN_MARK"


@dataclass(frozen=True)
class Leftover:
    """One process still alive that belongs to this run."""

    pid: int
    line: str


def mark() -> None:
    """Mark this process, so that all it starts from now on can be found; a run inside a run keeps the outer's mark."""
    os.environ.setdefault(MARK, f"{os.getpid()}-{secrets.token_hex(8)}")


def leftovers() -> list[Leftover]:
    """Processes that this run started; none for a run inside a run, whose siblings are the outer one's business."""
    value = os.environ.get(MARK, "")
    if not value.startswith(f"{os.getpid()}-"):
        return []
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid in own or process.environ().get(MARK) != value:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(Leftover(process.pid, " ".join(process.cmdline())[:200]))
        except psutil.Error:
            # Gone in between, or somebody else's: not ours either way.
            continue
    return found


def kill(processes: list[Leftover]) -> None:
    """End leftovers for good."""
    for leftover in processes:
        with contextlib.suppress(psutil.Error):
            psutil.Process(leftover.pid).kill()


def alive(pid: int) -> bool:
    """Whether ``pid`` still runs; a zombie that nobody has reaped yet does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
