"""One process has one log per file, shared by producer, consumer and admin."""

from __future__ import annotations

import threading
from pathlib import Path

from streamapp.broker.embedded.log import Log

_open_logs: dict[Path, tuple[Log, int]] = {}
_open_lock = threading.Lock()


def acquire_log(path: Path, *, max_bytes: int | None = None) -> Log:
    """The process's log on this file, opened if it is not yet. Give each one back with :func:`release_log`. Blocks."""
    path = path.resolve()
    with _open_lock:
        log, users = _open_logs.get(path, (None, 0))
        if log is None:
            log = Log(path, max_bytes=max_bytes)
        _open_logs[path] = (log, users + 1)
        return log


def release_log(log: Log) -> None:
    """Close the log when nobody uses it any more. Blocks."""
    with _open_lock:
        held, users = _open_logs[log.path]
        if users > 1:
            _open_logs[log.path] = (held, users - 1)
            return
        del _open_logs[log.path]
        log.close()
