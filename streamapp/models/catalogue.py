"""Where registered weights lie on this machine, and how a local file joins the registry."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.engine.component_list import list_of
from streamapp.errors import Conflict, InvalidRequest, NotFound
from streamapp.models.digest import autov3, folder_files, identify
from streamapp.models.families import family as known_family
from streamapp.models.families import family_of_file
from streamapp.models.folders import folder_traits
from streamapp.models.kinds import describe
from streamapp.models.learned import EMBEDDING, check_embedding, is_embedding
from streamapp.models.place import place
from streamapp.models.safe import LoraHeader, check_folder, check_lora, check_model, read_header
from streamapp.models.shipped import PACKAGE
from streamapp.models.steering import CONTROLNET, check_controlnet, is_controlnet
from streamapp.models.verified import note_weights
from streamapp.settings import Settings

LOCAL = "file:"
HERE = Path(__file__).parent
#: Also part of storage keys, infotexts and file names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}\Z")


class Registered(Protocol):
    """The part of the registry that this module writes to."""

    async def add_model(self, row: ModelRow) -> None:
        """Insert or replace by name and version."""

    async def add_lora(self, row: LoraRow) -> None:
        """Insert or replace by name and version."""

    async def lora(self, name: str, version: str | None = None) -> LoraRow | None:
        """The newest of that name."""


def place_of(row: ModelRow | LoraRow, settings: Settings) -> Path:
    """Where the weights of a registry row belong: in the package, or in the data folder's ``models``.

    Raises:
        InvalidRequest: when the row's path leads out of its root, or its source is of an unknown kind.
    """
    if row.source.startswith(PACKAGE):
        root = HERE
    elif row.source.startswith(LOCAL):
        root = models_root(settings)
    else:
        raise InvalidRequest(f"{row.name}: source {row.source!r} cannot be read on this machine", field="model")
    path = root / row.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise InvalidRequest(f"{row.name}: path {row.path!r} leads out of its folder", field="model")
    return path


def locate(row: ModelRow | LoraRow, settings: Settings) -> Path:
    """Where the weights of a registry row lie; see :func:`place_of`.

    Raises:
        InvalidRequest: when they cannot lie anywhere here.
        NotFound: when there is nothing at that place.
    """
    path = place_of(row, settings)
    if not path.exists():
        raise NotFound(f"{row.name}: its weights are not at {row.path} on this machine; add them again", name=row.name)
    if row.source == LOCAL and path.is_dir():
        root = models_root(settings).resolve()
        for part in folder_files(path):
            if part.is_symlink() and not part.resolve().is_relative_to(root):
                inside = part.relative_to(path)
                raise InvalidRequest(
                    f"{row.name}: {inside} is a link that leads out of the models folder", field="model"
                )
    return path


def delete_files(row: ModelRow | LoraRow, settings: Settings) -> int:
    """Delete the weights of a row that lie in the data folder's ``models``; bytes freed. Blocks.

    What ships with the package stays, and so does anything that a path leads to outside.
    """
    if not row.source.startswith(LOCAL):
        return 0
    try:
        path = locate(row, settings)
    except NotFound:
        return 0
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        list_of(path).unlink(missing_ok=True)
    return row.size


def models_root(settings: Settings) -> Path:
    """The folder that holds registered weights; row paths of source ``file:`` are relative to it."""
    return settings.data_path / "models"


def notes_root(settings: Settings) -> Path:
    """The folder of what :mod:`streamapp.models.verified` noted on this host."""
    return settings.data_path / "verified"


async def add_file(
    registry: Registered, settings: Settings, name: str, path: Path, kind: str, family: str
) -> ModelRow | LoraRow:
    """Register a local ``.safetensors`` file, or a diffusers folder; the version is the start of its digest.

    ``kind`` is ``model``, ``lora``, ``embedding`` or ``controlnet``; of the last three each has names of its own.

    What lies outside the data folder's ``models`` is linked into it (copied across file systems), so that the row's
    path holds on every machine that shares the folder.

    Raises:
        InvalidRequest: for a bad name, an unknown family, pickled or malformed weights, a LoRA of a kind that cannot
            be applied, or a file of the other kind.
        NotFound: when there is nothing at ``path``.
        Conflict: a LoRA, a learned word or a ControlNet has the name of another one of these kinds.
    """
    if not NAME.match(name):
        raise InvalidRequest(
            f"name {name[:40]!r} must be letters, digits, blanks, dots, dashes or underscores, at most 100",
            field="name",
        )
    known_family(family)
    if kind not in ("model", "lora", EMBEDDING, CONTROLNET):
        raise InvalidRequest(f"kind {kind!r} must be model, lora, embedding or controlnet", field="kind")
    row = await asyncio.to_thread(_register, models_root(settings), name, path, kind, family)
    if isinstance(row, LoraRow):
        check_name(row, await registry.lora(name))
    await asyncio.to_thread(note_weights, row, models_root(settings) / row.path, notes_root(settings))
    await (registry.add_lora(row) if isinstance(row, LoraRow) else registry.add_model(row))
    return row


def check_name(row: LoraRow, other: LoraRow | None) -> None:
    """Refuse a name that stands for something of another kind.

    Raises:
        Conflict: says of which.
    """
    if other is not None and what_is(other) != what_is(row):
        raise Conflict(f"{row.name} is the name of {what_is(other)}: choose another name", name=row.name)


def what_is(row: LoraRow) -> str:
    """What a row of the LoRAs' table is, for sentences."""
    return "a learned word" if is_embedding(row) else "a ControlNet" if is_controlnet(row) else "a LoRA"


def _register(root: Path, name: str, path: Path, kind: str, family: str) -> ModelRow | LoraRow:
    """Check, identify and place the weights: everything of :func:`add_file` that reads files."""
    if not path.exists():
        raise NotFound(f"there is nothing at {path}", path=str(path))
    header: LoraHeader | None = None
    told: dict[str, Any] = {}
    if kind == EMBEDDING:
        told = check_embedding(path, family)
    elif kind == CONTROLNET:
        told = check_controlnet(path, family)
    elif kind == "lora":
        header = check_lora(path)
    elif path.is_dir():
        check_folder(path)
        told = folder_traits(path, family)
    else:
        check_model(path)
        told = _file_traits(path, family)
    digest, size = identify(path)
    inside = place(root, path, f"{kind}s", name, digest)
    common: dict[str, Any] = {"version": digest[:10], "family": family, "source": LOCAL, "path": inside.as_posix()}
    common |= {"digest": digest, "size": size}
    if kind == EMBEDDING:
        return LoraRow(name=name, **common, traits={**told, "autov3": autov3(path)})
    if kind == CONTROLNET:
        return LoraRow(name=name, **common, traits=told)
    if header is None:
        return ModelRow(name=name, **common, traits=told)
    traits = {
        "format": header.layout,
        "rank": header.rank,
        "trigger_words": list(header.trigger_words),
        "autov3": autov3(path),
    }
    return LoraRow(name=name, **common, traits=traits)


def _file_traits(path: Path, family: str) -> dict[str, Any]:
    """What the tensors of a single file say of it.

    Raises:
        InvalidRequest: they are of another family, or its family's models are not drawn from single files.
    """
    kind, told = family_of_file(family, "model"), describe(read_header(path))
    if told.kind == CONTROLNET:
        raise InvalidRequest(f"{path.name} is a ControlNet: add it with `streamapp controlnets add`", field="path")
    if told.family is not None and told.family != kind.name:
        raise InvalidRequest(f"{path.name} is of family {told.family}, not {kind.name}", field="family")
    if told.family is None and kind.flow:
        raise InvalidRequest(f"{path.name} holds no {kind.title} transformer in its publisher's layout", field="path")
    return dict(told.traits)
