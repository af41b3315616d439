"""One process per log: a lock file beside it, held for the life of the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from streamapp.errors import ConfigError


class LogInUse(ConfigError):
    """Another process has the log open."""

    code = "log_in_use"


_held: set[IO[str]] = set()


def hold(path: Path) -> IO[str]:
    """Hold the lock file beside the log for the life of this process; the kernel frees it when the process dies."""
    lock_file = path.with_name(path.name + ".lock").open("a+", encoding="ascii")
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock_file.seek(0)
        holder = lock_file.read().strip()
        lock_file.close()
        raise LogInUse(
            f"{path} is in use by process {holder or 'unknown'}: the embedded broker serves one process only. "
            "Stop that one, or give this one another STREAMAPP_DATA_DIR; to run several processes, use kafka://",
            pid=holder,
        ) from None
    lock_file.truncate(0)
    lock_file.write(str(os.getpid()))
    lock_file.flush()
    _held.add(lock_file)
    return lock_file


def let_go(lock_file: IO[str]) -> None:
    """Free the lock."""
    _held.discard(lock_file)
    lock_file.close()


def _forget_locks() -> None:
    # A forked child would hold the lock on when this process is killed.
    for lock_file in _held:
        lock_file.close()


os.register_at_fork(after_in_child=_forget_locks)
