"""Brings weights into the models folder: linked where the file system can, copied where it cannot."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from streamapp.models.digest import folder_files


def place(root: Path, path: Path, folder: str, name: str, digest: str) -> Path:
    """The path of the weights relative to ``root``; brings them to ``folder/name-digest`` when they lie outside.

    Appears whole or not at all: a folder is put together under a temporary name and renamed. Blocks.
    """
    root.mkdir(parents=True, exist_ok=True)
    resolved = path.resolve()
    if resolved.is_relative_to(root.resolve()):
        return resolved.relative_to(root.resolve())
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    target = Path(folder) / f"{slug}-{digest[:10]}{'' if path.is_dir() else '.safetensors'}"
    if (root / target).exists():
        return target
    (root / folder).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=root) as scratch:
        whole = Path(scratch) / target.name
        if path.is_dir():
            for part in folder_files(resolved):
                inside = whole / part.relative_to(resolved)
                inside.parent.mkdir(parents=True, exist_ok=True)
                _link(part, inside)
        else:
            _link(resolved, whole)
        whole.rename(root / target)
    return target


def _link(source: Path, target: Path) -> None:
    """A hard link to the file behind any symbolic link, or a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copyfile(source, target)
