"""How much memory ticks take, and what it looks like when there is not enough."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from streamapp.engine.errors import EngineError
from streamapp.engine.job import Job


class Memory(Protocol):
    """The memory that ticks are computed in."""

    def peak(self) -> tuple[int, int] | None:
        """Most bytes that were in use since the last call, and the bytes there are; None where nobody counts."""

    def size(self) -> int | None:
        """Bytes there are; None where nobody counts."""

    def used(self) -> float | None:
        """Share of the memory that is in use now, what is only cached left out; None where nobody counts."""

    def free(self) -> None:
        """Give back what is only cached."""


class Uncounted:
    """The host's memory: it is not counted."""

    def peak(self) -> tuple[int, int] | None:
        """Nothing."""
        return None

    def size(self) -> int | None:
        """Nothing."""
        return None

    def used(self) -> float | None:
        """Of the host, or of this process's container."""
        return host_used()

    def free(self) -> None:
        """Nothing."""


class CudaMemory:
    """A CUDA device's, as torch's allocator counts it."""

    def __init__(self, device: str) -> None:
        self._device = device

    def peak(self) -> tuple[int, int] | None:
        """Allocated at most, and the device's size."""
        cuda: Any = sys.modules["torch"].cuda
        most = int(cuda.max_memory_allocated(self._device))
        cuda.reset_peak_memory_stats(self._device)
        return most, int(cuda.mem_get_info(self._device)[1])

    def size(self) -> int | None:
        """The device's."""
        return int(sys.modules["torch"].cuda.mem_get_info(self._device)[1])

    def used(self) -> float | None:
        """Also by other processes."""
        cuda: Any = sys.modules["torch"].cuda
        free, size = cuda.mem_get_info(self._device)
        cached = cuda.memory_reserved(self._device) - cuda.memory_allocated(self._device)
        return float(size - free - cached) / float(size)

    def free(self) -> None:
        """Empty the allocator's cache."""
        sys.modules["torch"].cuda.empty_cache()


class ByteLedger:
    """Pretended memory with a limit, for tests and trials: what takes bytes says so."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.refused = 0
        self._peak = 0
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes for a while.

        Raises:
            MemoryError: they are not there.
        """
        with self._lock:
            if self.held + size > self.limit:
                self.refused += 1
                raise MemoryError(f"{size} bytes of {self.limit - self.held}")
            self.held += size
            self._peak = max(self._peak, self.held)
        try:
            yield
        finally:
            with self._lock:
                self.held -= size

    def peak(self) -> tuple[int, int] | None:
        """Most bytes held, and the limit."""
        with self._lock:
            most, self._peak = self._peak, self.held
        return most, self.limit

    def size(self) -> int | None:
        """No device's: admission lets all in."""
        return None

    def used(self) -> float | None:
        """What is held."""
        return self.held / self.limit

    def free(self) -> None:
        """Nothing is cached."""


def host_used(root: Path = Path("/")) -> float | None:
    """Share of the memory of this process's container, else of the host, that is in use; None where it is not told."""
    container = root / "sys/fs/cgroup"
    try:
        limit, now = (int((container / f"memory.{name}").read_text()) for name in ("max", "current"))
        found = re.search(r"^inactive_file (\d+)", (container / "memory.stat").read_text(), re.MULTILINE)
        return (now - int(found[1] if found else 0)) / limit
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    try:
        told = dict(re.findall(r"^(\w+):\s+(\d+)", (root / "proc/meminfo").read_text(), re.MULTILINE))
        return 1 - int(told["MemAvailable"]) / int(told["MemTotal"])
    except (OSError, KeyError):
        return None


def memory_of(device: str, ledger: ByteLedger | None = None) -> Memory:
    """The memory of a device, or the ledger that stands for it."""
    if ledger is not None:
        return ledger
    return CudaMemory(device) if device.startswith("cuda") else Uncounted()


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory is short: Python's own, or torch's for a device."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def lost(error: BaseException) -> bool:
    """Whether it says that the device is lost: nothing works there until the process is a new one."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return "AcceleratorError" in kinds or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def too_large(job: Job) -> EngineError:
    """What a picture gets that does not fit even alone."""
    message = f"there is not enough memory to draw {job.width}x{job.height} pixels; ask for a smaller picture"
    return EngineError("out_of_memory", message, field="width")
