"""The list beside a single file that names what it lacks: a VAE, text encoders, T5's vocabulary. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson

from streamapp.engine.errors import EngineError

TITLES: Mapping[str, str] = {"vae": "VAE", "clip_l": "CLIP-L", "clip_g": "CLIP-G", "t5": "T5"}
T5_VOCABULARY = "t5_vocabulary"
KNOWN = (*TITLES, T5_VOCABULARY)


def list_of(path: Path) -> Path:
    """Where it is: ``x.components.json`` beside ``x.safetensors``."""
    return path.with_name(f"{path.stem}.components.json")


def listed(path: Path) -> dict[str, Path]:
    """What the list beside a file names: by component a path, relative to the file's folder.

    Raises:
        EngineError: ``load_failed`` for a list that cannot be read, or that names what is no component.
    """
    try:
        found = orjson.loads(list_of(path).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EngineError("load_failed", f"{list_of(path).name} cannot be read: {error}") from error
    if not isinstance(found, dict) or any(name not in KNOWN or not isinstance(at, str) for name, at in found.items()):
        message = f"{list_of(path).name} must be an object of paths by component: {', '.join(KNOWN)}"
        raise EngineError("load_failed", message)
    return {name: path.parent / at for name, at in found.items()}
