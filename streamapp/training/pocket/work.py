"""The work folder: what stages make and go on from, written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """Where a training keeps its files.

    Attributes:
        folder: its own; nothing outside it is written.
        seed: of everything that is drawn by chance.
    """

    folder: Path
    seed: int = 7

    def path(self, name: str) -> Path:
        """A file or folder in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Have ``save`` write a file that appears only when it is whole, also after a power cut."""
        path = self.path(name)
        part = path.with_name(f".{path.name}.part")
        save(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)

    def note(self, **facts: Any) -> None:
        """Add facts to ``run.json``: what was done with which versions, and how long it took."""
        path = self.path("run.json")
        known = json.loads(path.read_text()) if path.exists() else {}
        known.update(facts, seed=self.seed, python=platform.python_version())
        known["versions"] = {name: version(name) for name in ("torch", "diffusers", "transformers", "resvg-py")}
        self.write("run.json", lambda part: part.write_bytes(json.dumps(known, indent=2).encode() + b"\n"))


def default_folder() -> Path:
    """``streamapp/pocket`` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "streamapp" / "pocket"
