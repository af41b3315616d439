"""ControlNets as weights of a registry: a row of the LoRAs' table with a mark.

A request names one with a picture. The engine knows it by a name that only this very file answers to, so that a task
means the same whatever is registered later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from streamapp.db.rows import LoraRow, ModelRow
from streamapp.errors import InvalidRequest
from streamapp.models.families import FAMILIES, family
from streamapp.models.kinds import Described, describe
from streamapp.models.learned import KIND
from streamapp.models.safe import read_header

#: The value of the trait ``kind`` that says so.
CONTROLNET = "controlnet"
CONFIG = "config.json"
#: What the configuration of a folder calls its class → the families of which it may be.
CLASSES = {"ControlNetModel": ("sd15", "sdxl"), "FluxControlNetModel": ("flux",)}


def is_controlnet(row: ModelRow | LoraRow) -> bool:
    """Whether a row is a ControlNet."""
    return isinstance(row, LoraRow) and row.traits.get(KIND) == CONTROLNET


def engine_name(row: LoraRow) -> str:
    """What the engine calls it: another one for another file, and none that a checkpoint can have."""
    return f"{row.name} ({row.digest[:10]})"


def check_steered(family_name: str) -> None:
    """Refuse a family whose models take no ControlNet.

    Raises:
        InvalidRequest: names the families that do.
    """
    if not family(family_name).controlnets:
        able = ", ".join(kind.name for kind in FAMILIES.values() if kind.controlnets)
        raise InvalidRequest(
            f"models of family {family_name} take no ControlNet yet; those of {able} do", field="family"
        )


def check_controlnet(path: Path, family_name: str) -> dict[str, Any]:
    """Refuse anything but a well-formed ControlNet for a family: one file, or diffusers' folder; its traits. Blocks.

    Raises:
        InvalidRequest: for other files, one of another family, a kind that is not drawn, or a family that takes none.
        NotFound: when there is no such file.
    """
    check_steered(family_name)
    if path.is_dir():
        return _folder(path, family_name)
    found = describe(read_header(path))
    check_file(path.name, family_name, found)
    return {KIND: CONTROLNET, **found.traits}


def check_file(name: str, family_name: str, found: Described) -> None:
    """Refuse a single file that is no ControlNet for a family, or none that can be drawn with, by its header.

    Raises:
        InvalidRequest: says what it is.
    """
    check_steered(family_name)
    if found.kind != CONTROLNET:
        what = "a LoRA" if found.kind == "lora" else f"no ControlNet ({found.kind.replace('_', ' ')})"
        raise InvalidRequest(f"{name} holds {what}", field="path")
    if (unlike := found.traits.get("unlike")) is not None:
        raise InvalidRequest(f"{name} is {unlike}, which is not drawn: take the whole ControlNet", field="path")
    _same(name, found.family, family_name)
    if found.family not in CLASSES["ControlNetModel"]:
        raise InvalidRequest(
            f"{name} cannot be read without its {CONFIG} (of one file are only those of a size that was published for "
            "Stable Diffusion 1, 2 or XL): add the folder",
            field="path",
        )


def _folder(path: Path, family_name: str) -> dict[str, Any]:
    try:
        config = orjson.loads((path / CONFIG).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InvalidRequest(
            f"{path.name} has no {CONFIG} that can be read: it is no folder of a ControlNet", field="path"
        ) from error
    kind = str(config.get("_class_name", "")) if isinstance(config, dict) else ""
    if kind not in CLASSES:
        able = " and ".join(CLASSES)
        raise InvalidRequest(f"{path.name} is a {kind or 'folder of no kind'}; drawn are {able}", field="path")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise InvalidRequest(f"{path.name} has no .safetensors file: others are not read", field="path")
    headers = [read_header(file) for file in files]
    if family_name not in CLASSES[kind]:
        raise InvalidRequest(f"{path.name} is a {kind}, which is not of family {family_name}", field="family")
    told = describe(headers[0])
    if told.kind != CONTROLNET:
        raise InvalidRequest(f"{path.name} holds no ControlNet ({told.kind.replace('_', ' ')})", field="path")
    _same(path.name, told.family, family_name)
    modes = config.get("num_mode")
    return {KIND: CONTROLNET, **told.traits, **({"modes": int(modes)} if modes else {})}


def _same(name: str, told: str | None, family_name: str) -> None:
    if told is not None and told != family_name:
        raise InvalidRequest(f"{name} is a ControlNet for family {told}, not {family_name}", field="family")
