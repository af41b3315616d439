"""Refuses weights that are not what they must be: only safetensors, well-formed, of a kind that can be applied.

Reads headers only, with the standard library: a pickled file is never opened by anything that would run it.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from streamapp.errors import InvalidRequest, NotFound
from streamapp.models.digest import INDEX

PICKLED = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})
MAX_HEADER = 100 * 1024**2
#: Components of a diffusers folder that have weights of their own.
WEIGHED = frozenset({"unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"})
#: Key endings of adapters that are read wrongly or not at all, and what they are called.
UNSUPPORTED = {
    ".hada_w1_a": "LoHa",
    ".lokr_w1": "LoKr",
    ".lokr_w1_a": "LoKr",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_mid": "LoCon with a Tucker core",
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
    ".on_input": "IA3",
}


@dataclass(frozen=True, slots=True)
class LoraHeader:
    """What the header of a LoRA file says about it."""

    layout: Literal["kohya", "diffusers"]
    rank: int
    trigger_words: tuple[str, ...]


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor names to dtype, shape and data offsets, and ``__metadata__``.

    Raises:
        InvalidRequest: for a pickled file (by name), or one that is not well-formed.
        NotFound: when there is no such file.
    """
    if path.suffix.lower() in PICKLED:
        raise InvalidRequest(
            f"{path.name} is a pickled file, which can run code when it is opened: convert it to .safetensors",
            field="path",
        )
    if not path.is_file():
        raise NotFound(f"there is no file at {path}", path=str(path))
    if path.suffix.lower() != ".safetensors":
        raise InvalidRequest(f"{path.name} is not a .safetensors file", field="path")
    return parse_header(path, path.name)


def parse_header(path: Path, name: str) -> dict[str, Any]:
    """As :func:`read_header`, of a file that may have any name on the disk; ``name`` is what messages call it.

    Raises:
        InvalidRequest: when it is not well-formed.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, total - 8):
            raise _malformed(name)
        raw = file.read(length)
    return header_of(raw, total, name)


def header_of(raw: bytes, total: int, name: str) -> dict[str, Any]:
    """The header that ``raw`` holds, of a file of ``total`` bytes.

    Raises:
        InvalidRequest: when it is not well-formed, or does not describe a file of that length.
    """
    try:
        header = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _malformed(name) from error
    if not isinstance(header, dict):
        raise _malformed(name)
    ends = [_end(entry) for key, entry in header.items() if key != "__metadata__"]
    if not ends or None in ends or max(end for end in ends if end is not None) != total - 8 - len(raw):
        raise _malformed(name)
    return header


def check_model(path: Path) -> None:
    """Refuse anything but a well-formed single-file checkpoint.

    Raises:
        InvalidRequest: also when the file holds a LoRA.
        NotFound: when there is no such file.
    """
    if _lora_keys(read_header(path)):
        raise InvalidRequest(f"{path.name} holds a LoRA, not a model: add it with `streamapp loras add`", field="path")


def check_folder(path: Path) -> None:
    """Refuse a folder that is not a diffusers pipeline with safetensors weights in every component.

    Raises:
        InvalidRequest: names what is missing.
    """
    if not (path / INDEX).is_file():
        raise InvalidRequest(f"{path.name} has no {INDEX}: it is not a diffusers folder", field="path")
    components = sorted(part for part in path.iterdir() if part.is_dir() and part.name in WEIGHED)
    if not components:
        raise InvalidRequest(f"{path.name} has none of the folders {', '.join(sorted(WEIGHED))}", field="path")
    for component in components:
        weights = sorted(component.glob("*.safetensors"))
        if not weights:
            pickled = any(part.suffix in PICKLED for part in component.iterdir())
            why = "only pickled weights, which can run code when opened" if pickled else "no weights"
            raise InvalidRequest(f"{path.name}/{component.name} has {why}: .safetensors is needed", field="path")
        for file in weights:
            read_header(file)


def check_lora(path: Path, name: str | None = None) -> LoraHeader:
    """Refuse anything but a well-formed plain LoRA in the kohya or diffusers layout.

    ``name`` is what messages call a file that has another name, or none, on the disk.

    Raises:
        InvalidRequest: for other files and for kinds of adapters that cannot be applied (LoHa, LoKr, DoRA).
        NotFound: when there is no such file.
    """
    header = read_header(path) if name is None else parse_header(path, name)
    name = name or path.name
    for key in header:
        for ending, kind in UNSUPPORTED.items():
            if key.endswith((ending, f"{ending}.weight")):
                raise InvalidRequest(f"{name} is a {kind}, which cannot be applied yet: use a LoRA", field="path")
    keys = _lora_keys(header)
    if not keys:
        raise InvalidRequest(f"{name} holds no LoRA weights", field="path")
    kohya = keys[0].endswith("lora_down.weight")
    ranks = [int(header[key]["shape"][0]) for key in keys if header[key].get("shape")]
    metadata = header.get("__metadata__")
    words = _trigger_words(metadata if isinstance(metadata, dict) else {})
    return LoraHeader("kohya" if kohya else "diffusers", max(ranks, default=0), words)


def _lora_keys(header: Mapping[str, Any]) -> list[str]:
    """The names of the down matrices, whose first dimension is the rank."""
    return [name for name in header if name.endswith(("lora_down.weight", "lora_A.weight", "lora.down.weight"))]


def _trigger_words(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """What the metadata names as trigger words; kohya's tag counts are no such list."""
    phrase = metadata.get("modelspec.trigger_phrase")
    if isinstance(phrase, str) and phrase.strip():
        return tuple(word.strip() for word in phrase.split(",") if word.strip())[:20]
    return ()


def _end(entry: Any) -> int | None:
    """Where a tensor's data end, or ``None`` when the entry is malformed."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(offset, int) for offset in offsets):
        return int(offsets[1])
    return None


def _malformed(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is not a whole safetensors file: fetch or convert it again", field="path")
