"""Reads the named parts of a checkpoint that is a folder in diffusers' layout, without any network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson
import torch

from streamapp.engine.errors import EngineError


@dataclass(frozen=True)
class Part:
    """A component: its library and class, the type of its weights (None: it has none), whether it may be absent."""

    library: str
    kind: str
    dtype: torch.dtype | None = None
    optional: bool = False


def read_parts(path: Path, wanted: Mapping[str, Part]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The components by name (None: absent), and the scheduler's configuration.

    Raises:
        EngineError: ``load_failed`` with what is missing or unreadable.
    """
    if path.is_file():
        raise EngineError("load_failed", f"{path.name}: this family is read from a diffusers folder, not from one file")
    if not (path / "model_index.json").is_file():
        raise EngineError("load_failed", f"{path.name} is not a diffusers folder: it has no model_index.json")
    try:
        index = orjson.loads((path / "model_index.json").read_bytes())
        found = {name: _read(path, name, part, index) for name, part in wanted.items()}
        scheduler = orjson.loads((path / "scheduler" / "scheduler_config.json").read_bytes())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError("load_failed", f"{path.name}: {error}") from error
    return found, scheduler


def _read(path: Path, name: str, part: Part, index: Mapping[str, Any]) -> Any:
    if not (index.get(name) or [None])[0]:
        if part.optional:
            return None
        raise EngineError("load_failed", f"{path.name} has no {name}: it is of another family")
    options: dict[str, Any] = {"local_files_only": True}
    if part.dtype is not None:
        options |= {"use_safetensors": True, "dtype" if part.library == "transformers" else "torch_dtype": part.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(import_module(part.library), part.kind).from_pretrained(path / name, **options)
