"""Starts the child of a process host."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any


def spawn(options: dict[str, Any]) -> tuple[subprocess.Popen[bytes], Connection]:
    """A child with these options, and our end of the pipe to it."""
    ours, theirs = socket.socketpair()
    threads = str(options.get("threads", 1))
    child = subprocess.Popen(
        [sys.executable, "-m", "streamapp.engine.child", str(theirs.fileno()), json.dumps(options)],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    )
    theirs.close()
    return child, Connection(ours.detach())
