"""Where a checkpoint's VAE and text encoders are: in its own file, or in a file or folder that somebody named for it.

Single files keep them under names of their own; those that hold one component only keep it without any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import orjson

from streamapp.engine.component_list import TITLES
from streamapp.engine.errors import EngineError
from streamapp.engine.weights_file import WeightsFile

#: By component, what its tensors' names begin with in files of several, and in one of its own.
FILED: Mapping[str, tuple[str, ...]] = {
    "vae": ("first_stage_model.", "vae.", ""),
    "clip_l": ("text_encoders.clip_l.transformer.", "conditioner.embedders.0.transformer.", ""),
    "clip_g": ("text_encoders.clip_g.transformer.", ""),
    "t5": ("text_encoders.t5xxl.transformer.", ""),
}
#: By component, tensors that show it (the last: a VAE in diffusers' layout has it too).
SHOWN: Mapping[str, str] = {
    "vae": "decoder.conv_in.weight",
    "clip_l": "text_model.embeddings.token_embedding.weight",
    "clip_g": "text_model.embeddings.token_embedding.weight",
    "t5": "encoder.block.0.layer.0.SelfAttention.q.weight",
}
#: By component, its folders in a diffusers folder, and what its configuration is of.
FOLDERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "vae": (("vae",), "AutoencoderKL"),
    "clip_l": (("text_encoder",), "clip_text_model"),
    "clip_g": (("text_encoder_2",), "clip_text_model"),
    "t5": (("text_encoder_3", "text_encoder_2", "text_encoder"), "t5"),
}


@dataclass(frozen=True)
class Found:
    """A component's place: an open file and the prefix in it, or a folder in diffusers' layout."""

    where: WeightsFile | Path
    prefix: str = ""


def find(component: str, file: WeightsFile, named: Mapping[str, str | Path], stack: ExitStack) -> Found | None:
    """Where a component is: in ``file``, else where ``named`` says; files that are opened close with ``stack``.

    Raises:
        EngineError: ``load_failed`` when what was named for it does not hold it.
    """
    prefix = _prefix(component, file, alone=False)
    if prefix is not None:
        return Found(file, prefix)
    if component not in named:
        return None
    path = Path(named[component])
    if path.is_dir():
        folder = _folder(component, path)
        if folder is not None:
            return Found(folder)
    else:
        other = stack.enter_context(WeightsFile(path))
        prefix = _prefix(component, other, alone=True)
        if prefix is not None:
            return Found(other, prefix)
    raise EngineError("load_failed", f"{path.name}, which is named for the {TITLES[component]}, holds none")


def missing(name: str, lacking: Sequence[str]) -> EngineError:
    """The error for a file whose components are nowhere."""
    what = ", ".join(TITLES[component] for component in lacking)
    message = f"{name} has no {what}, and none is named for it; `streamapp models components` names them"
    return EngineError("load_failed", message, lacking=list(lacking))


def _prefix(component: str, file: WeightsFile, *, alone: bool) -> str | None:
    prefixes = FILED[component] if alone else FILED[component][:-1]
    return next((prefix for prefix in prefixes if f"{prefix}{SHOWN[component]}" in file.tensors), None)


def _folder(component: str, path: Path) -> Path | None:
    """The component's own folder, in a checkpoint's folder or as it is."""
    names, kind = FOLDERS[component]
    for folder in (path, *(path / name for name in names)):
        try:
            config = orjson.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        if kind in (config.get("_class_name"), config.get("model_type")):
            return folder
    return None
