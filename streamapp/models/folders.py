"""What a diffusers folder says of itself: whether it is of the family it is added as, and which variant it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from streamapp.errors import InvalidRequest
from streamapp.models.digest import INDEX
from streamapp.models.families import FAMILIES, family


def folder_traits(path: Path, family_name: str) -> dict[str, Any]:
    """Traits of a folder for its registry row; blocks.

    Raises:
        InvalidRequest: its index names a pipeline of another family, or one that is not drawn here.
    """
    kind = family(family_name)
    pipeline = str(_read(path / INDEX).get("_class_name", ""))
    of = next((other.name for other in FAMILIES.values() if pipeline in other.pipelines), None)
    if of not in (None, kind.name):
        raise InvalidRequest(f"{path.name} is a {pipeline}, which is of family {of}, not {kind.name}", field="family")
    if of is None and kind.flow:
        able = " or ".join(kind.pipelines)
        raise InvalidRequest(f"{path.name} is a {pipeline or 'folder of no kind'}; drawn is {able}", field="path")
    if kind.name == "flux":
        guided = _read(path / "transformer" / "config.json").get("guidance_embeds")
        return {"variant": "dev" if guided else "schnell"}
    return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InvalidRequest(f"{path.parent.name}/{path.name} cannot be read: {error}", field="path") from error
    return found if isinstance(found, dict) else {}
