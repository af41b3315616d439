r"""One rule for the identity of weights, used by the registry, the recipes and the workers.

A single file has the SHA-256 of its bytes. A diffusers folder has the SHA-256 of the list that ``sha256sum`` prints
for ``model_index.json`` and for every ``.safetensors``, ``.json``, ``.txt`` and ``.model`` file in its component
folders, sorted by path in byte order. Configurations and tokenizers count because they change the picture; cards,
notices and other files at the top do not. A folder of one component (a ControlNet), which has no index, has that of
``config.json`` and the ``.safetensors`` files beside it. By hand, inside the folder::

    find model_index.json */ -regex '.*\\.\\(safetensors\\|json\\|txt\\|model\\)' \\
        | LC_ALL=C sort | xargs sha256sum | sha256sum
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

INDEX, CONFIG = "model_index.json", "config.json"
SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})


class Identity(NamedTuple):
    """SHA-256 in hex, and the bytes it stands for."""

    digest: str
    size: int


def identify(path: Path) -> Identity:
    """Digest and size of a weights file or a diffusers folder; reads every byte, so call it in a thread.

    Raises:
        FileNotFoundError: when there is nothing at ``path``.
    """
    if path.is_dir():
        listing, size = hashlib.sha256(), 0
        for part in folder_files(path):
            listing.update(f"{file_sha256(part)}  {part.relative_to(path).as_posix()}\n".encode())
            size += part.stat().st_size
        return Identity(listing.hexdigest(), size)
    return Identity(file_sha256(path), path.stat().st_size)


def folder_files(folder: Path) -> list[Path]:
    """The files of a diffusers folder that loading reads, in the order of the digest."""
    if not (folder / INDEX).is_file() and (folder / CONFIG).is_file():
        return sorted([folder / CONFIG, *folder.glob("*.safetensors")], key=lambda part: part.name.encode())
    inside = (part for part in folder.glob("*/**/*") if part.is_file() and part.suffix in SUFFIXES)
    found = [part for part in (folder / INDEX, *inside) if part.is_file()]
    return sorted(found, key=lambda part: part.relative_to(folder).as_posix().encode())


def autov3(path: Path) -> str:
    """The first 12 hex digits of SHA-256 over a safetensors file behind its header: how web UIs name a LoRA."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
