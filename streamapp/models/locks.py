"""One process at a time for one file, on this machine."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

POLL = 0.1


def is_locked(target: Path) -> bool:
    """Whether some process holds ``TARGET.lock`` at this moment."""
    try:
        with target.with_name(f"{target.name}.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@asynccontextmanager
async def locked(target: Path) -> AsyncIterator[None]:
    """Hold ``TARGET.lock``; others wait, and a killed holder lets go.

    The lock file stays: removing it would let a waiter lock a file that nobody else sees any more.
    """
    with target.with_name(f"{target.name}.lock").open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(POLL)
        yield  # closing the file lets go
