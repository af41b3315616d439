"""What a single file lacks: which VAE and text encoders it is drawn with, and T5's vocabulary.

The list lies beside the weights, in the folder that hosts share; see :mod:`streamapp.engine.component_list`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import orjson

from streamapp.db.rows import ModelRow
from streamapp.engine.component_list import TITLES, list_of
from streamapp.errors import InvalidRequest, NotFound
from streamapp.models.catalogue import LOCAL, locate, models_root
from streamapp.models.digest import identify
from streamapp.models.download import Downloader, Fetched, Remote
from streamapp.models.place import place
from streamapp.models.safe import read_header
from streamapp.settings import Settings

#: Where T5's vocabulary is public, at a revision that stays, and what its file is (Apache-2.0).
T5_REPOSITORY = "google-t5/t5-small"
T5_REVISION = "df1b051c49625cf57a3d0d8d3863ed4d13564fe4"
T5_FILE = "spiece.model"
T5_DIGEST = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
T5_SIZE = 791_656


class Registered(Protocol):
    """The part of the registry that this module reads and writes."""

    async def model(self, name: str, version: str | None = None) -> ModelRow | None:
        """One checkpoint."""

    async def add_model(self, row: ModelRow) -> None:
        """Insert or replace by name and version."""


async def name_components(
    registry: Registered, settings: Settings, name: str, given: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Say where a single file's components come from; what it lists now, with digests.

    Args:
        given: by component (``vae``, ``clip_l``, ``clip_g``, ``t5``) a registered model's name or a safetensors file,
            which is brought into the models folder; an empty text takes a component off the list.

    Raises:
        NotFound: no such model, or neither a model nor a file of that name.
        InvalidRequest: no such component, or a model that is no single file.
    """
    row = await registry.model(name)
    if row is None:
        raise NotFound(f"there is no model {name!r}", name=name)
    unknown = given.keys() - TITLES.keys()
    if unknown:
        raise InvalidRequest(f"{min(unknown)!r} is no component: name {', '.join(TITLES)}", field="components")
    path = locate(row, settings)
    if row.source != LOCAL or path.is_dir():
        raise InvalidRequest(f"{name} is no single file of yours: its components are its own", field="model")
    known: dict[str, dict[str, Any]] = dict(row.traits.get("components") or {})
    for component, text in given.items():
        known.pop(component, None)
        if text:
            known[component] = await _component(registry, settings, component, text)
    await asyncio.to_thread(_write, models_root(settings), path, known)
    await registry.add_model(replace(row, traits={**row.traits, "components": known}))
    return known


async def _component(registry: Registered, settings: Settings, component: str, text: str) -> dict[str, Any]:
    """A component's place in the models folder, digest and, of a registered one, name."""
    root = models_root(settings)
    row = await registry.model(text)
    if row is not None:
        at = locate(row, settings).resolve()
        if not at.is_relative_to(root.resolve()):
            raise InvalidRequest(f"{text} does not lie in the models folder", field="components")
        return {"path": at.relative_to(root.resolve()).as_posix(), "digest": row.digest, "name": row.name}
    return await asyncio.to_thread(_placed, root, Path(text), component)


def _placed(root: Path, file: Path, component: str) -> dict[str, Any]:
    if not file.exists():
        raise NotFound(f"{file} is neither a registered model nor a file", name=str(file))
    read_header(file)
    digest, _ = identify(file)
    return {"path": place(root, file, "components", component, digest).as_posix(), "digest": digest}


def _write(root: Path, path: Path, known: Mapping[str, Mapping[str, Any]]) -> None:
    target = list_of(path)
    places = {component: os.path.relpath(root / entry["path"], path.parent) for component, entry in known.items()}
    if not places:
        target.unlink(missing_ok=True)
        return
    new = target.with_name(f"{target.name}.new")
    new.write_bytes(orjson.dumps(places, option=orjson.OPT_INDENT_2))
    new.replace(target)


def vocabulary_path(settings: Settings) -> Path:
    """Where T5's vocabulary lies: beside the single files that need it."""
    return models_root(settings) / "models" / T5_FILE


async def fetch_vocabulary(downloader: Downloader, settings: Settings) -> Fetched:
    """Fetch T5's vocabulary from the Hub, verified, unless it is here already.

    Raises:
        AppError: the Hub does not give it, or gives another file; see :meth:`Downloader.fetch`.
    """
    url = f"{settings.hub_url.rstrip('/')}/{T5_REPOSITORY}/resolve/{T5_REVISION}/{T5_FILE}"
    remote = Remote(url, f"{T5_REPOSITORY}:{T5_FILE}", T5_DIGEST, T5_SIZE, weights=False)
    return await downloader.fetch(remote, vocabulary_path(settings))
