"""Reads a checkpoint that is a folder in diffusers' layout, without any network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from streamapp.engine.errors import EngineError


@dataclass(frozen=True)
class Folder:
    """Components: ``texts`` are pairs of tokenizer and text encoder; ``index`` is model_index.json."""

    index: Mapping[str, Any]
    texts: tuple[tuple[Any, Any], ...]
    unet: Any
    vae: Any
    scheduler: dict[str, Any]


def read_folder(path: Path, dtype: torch.dtype, texts: Mapping[str, str]) -> Folder:
    """The components of a U-Net family; the VAE in float32: it is small, and half precision overflows in some.

    Args:
        path: the folder.
        dtype: of the U-Net and the text encoders.
        texts: folder of each text encoder → that of its tokenizer.

    Raises:
        EngineError: ``load_failed`` with what is missing or unreadable.
    """
    import diffusers
    import transformers

    if not (path / "model_index.json").is_file():
        raise EngineError("load_failed", f"{path.name} is not a diffusers folder: it has no model_index.json")
    weights: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    # Typed as callable on instances only; they are plain class methods.
    models: Any = diffusers
    try:
        index = orjson.loads((path / "model_index.json").read_bytes())
        for part in texts:
            if part not in index:
                raise EngineError("load_failed", f"{path.name} has no {part}: it is of another family")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            pairs = tuple(
                (
                    transformers.CLIPTokenizer.from_pretrained(path / tokenizer, local_files_only=True),
                    getattr(transformers, index[part][1]).from_pretrained(path / part, dtype=dtype, **weights),
                )
                for part, tokenizer in texts.items()
            )
            unet = models.UNet2DConditionModel.from_pretrained(path / "unet", torch_dtype=dtype, **weights)
            vae = models.AutoencoderKL.from_pretrained(path / "vae", torch_dtype=torch.float32, **weights)
        scheduler = orjson.loads((path / "scheduler" / "scheduler_config.json").read_bytes())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError("load_failed", f"{path.name}: {error}") from error
    return Folder(index, pairs, unet, vae, scheduler)
