"""The tiers in which weights are kept, what moving them took, and how many bytes each may take.

VRAM is where batches are drawn (on a CPU: the modules that draw), RAM the copies on the host, disk the files.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from streamapp.engine.component_list import list_of
from streamapp.engine.families import Device

if TYPE_CHECKING:
    from streamapp.engine.host_weights import HostWeights
    from streamapp.engine.module_sets import ModuleSets

Tier = Literal["vram", "ram", "disk"]
#: A file or folder as it lies there: what it is read as, its path, and of each file its name, size, time and inode.
Source = tuple[Any, ...]
#: Shares that are taken where nothing is set: of a CUDA device for weights (ticks need the rest), of the host for
#: copies beside one, of the host for the modules and for copies where it draws itself.
DEVICE, HOST, HOST_DRAWS, HOST_COPIES = 0.85, 0.5, 0.5, 0.125


@dataclass(frozen=True)
class Loaded:
    """What making weights ready took: the tier they came from, the bytes that were moved, the seconds.

    ``evicted`` are the checkpoints that went to make room.
    """

    name: str
    tier: Tier
    bytes: int
    seconds: float
    evicted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budgets:
    """Bytes that weights may take; None: a share of what there is. One checkpoint is always loaded."""

    vram: int | None = None
    ram: int | None = None

    def for_device(self, device: str) -> tuple[int, int]:
        """Bytes in VRAM and in RAM."""
        host = memory()
        if device.startswith("cuda"):
            cuda: Any = sys.modules["torch"].cuda
            own, copies = int(DEVICE * cuda.mem_get_info(device)[1]), int(HOST * host)
        else:
            own, copies = int(HOST_DRAWS * host), int(HOST_COPIES * host)
        return own if self.vram is None else self.vram, copies if self.ram is None else self.ram


class Tiers:
    """Both tiers of an engine, made when something is first loaded: importing this imports no torch."""

    def __init__(self, device: Device, budgets: Budgets) -> None:
        self._device = device
        self._budgets = budgets

    @cached_property
    def host(self) -> HostWeights:
        """The RAM tier."""
        return self._made[0]

    @cached_property
    def sets(self) -> ModuleSets:
        """The VRAM tier."""
        return self._made[1]

    def source(self, path: str | Path, family: str | None, variant: str | None) -> Source:
        """A checkpoint as it lies on the disk now."""
        return source_of(Path(path), family, variant, self._device.dtype)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Bytes and budget by tier, and the paths of what RAM holds; empty before anything was loaded."""
        if "_made" not in self.__dict__:
            return {}
        return {
            "vram": {"bytes": self.sets.bytes, "budget": self.sets.budget},
            "ram": {"bytes": self.host.bytes, "budget": self.host.budget, "paths": self.host.paths},
        }

    def clear(self) -> None:
        """Drop what the RAM tier keeps."""
        if "_made" in self.__dict__:
            self.host.clear()

    @cached_property
    def _made(self) -> tuple[HostWeights, ModuleSets]:
        import torch  # noqa: F401 (the budgets ask it for the device)

        from streamapp.engine.host_weights import HostWeights
        from streamapp.engine.module_sets import ModuleSets

        name = self._device.name
        vram, ram = self._budgets.for_device(name)
        return HostWeights(ram, pin=name.startswith("cuda")), ModuleSets(name, vram)


def source_of(path: Path, *about: Any) -> Source:
    """A file or folder as it lies there now; one that is not there has no files."""
    files = [path, list_of(path)]
    if path.is_dir():
        files = sorted(found for found in path.rglob("*") if found.is_file())
    stamps: list[tuple[Any, ...]] = []
    for file in files:
        with suppress(OSError):
            at = file.stat()
            stamps.append((str(file), at.st_size, at.st_mtime_ns, at.st_ino))
    return (*about, str(path), tuple(stamps))


def on_disk(source: Source) -> int:
    """Bytes of a source's files."""
    return sum(stamp[1] for stamp in source[-1])


def memory() -> int:
    """Bytes that this host, or the container that this process is in, may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(physical, int(limit.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return physical
