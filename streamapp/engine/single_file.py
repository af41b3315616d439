"""Reads a checkpoint that is one safetensors file in the published layout, without any network.

Components are built empty and every parameter is then taken from the file: what the file lacks is named, nothing keeps
a random value. Names are converted by diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamapp.engine.architectures import Architecture, Text, architecture_of
from streamapp.engine.clip_vocabulary import clip_tokenizer
from streamapp.engine.component_list import listed
from streamapp.engine.components import check
from streamapp.engine.errors import EngineError
from streamapp.engine.named_parts import FILED, SHOWN
from streamapp.engine.weights_file import Views, pour

VAE = "first_stage_model."
#: Keys of weights that are stored in fewer bits with scales beside them: cast as they are, they would draw noise.
SCALED = ("scale_weight", "weight_scale", "scaled_fp8", ".absmax", "bitsandbytes__nf4", "bitsandbytes__fp4")


@dataclass(frozen=True)
class Components:
    """A checkpoint's parts, as a diffusers folder would give them; ``texts`` are pairs of tokenizer and encoder."""

    texts: tuple[tuple[Any, Any], ...]
    unet: Any
    vae: Any
    scheduler: dict[str, Any]
    architecture: Architecture | None = None


def read_single_file(
    path: Path,
    dtype: torch.dtype,
    family: str = "sd15",
    *,
    architecture: Architecture | None = None,
    tokenizer: Callable[[Text], Any] | None = None,
    into: Components | None = None,
) -> Components:
    """The components of a file of a family with a U-Net; the VAE in float32, the others in ``dtype``.

    Args:
        into: components that nobody needs any more; where they have the same architecture, their memory is taken.

    Raises:
        EngineError: ``load_failed`` naming what is missing or of a wrong shape.
    """
    from diffusers.loaders import single_file_utils

    # Typed as Any: diffusers does not annotate its converters.
    convert: Any = single_file_utils
    state = _Whole(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if scaled := next((name for name in state if name.endswith(SCALED)), None):
        raise EngineError(
            "load_failed", f"{path.name} is stored in fewer bits ({scaled}): take its fp16 or plain fp8 file"
        )
    parts = architecture or architecture_of(shapes, path.name, family)
    encoders = [(text.prefix, f"text encoder ({text.prefix}…)") for text in parts.texts]
    for prefix, what in ((VAE, "VAE"), *encoders):
        if not any(name.startswith(prefix) for name in state):
            raise EngineError("load_failed", f"{path.name} has no {what}: it holds a part of a checkpoint only")
    unet, vae, old = _modules(parts, into)
    words = tokenizer or tokenizer_of
    try:
        fill(unet, convert.convert_ldm_unet_checkpoint(state, dict(unet.config)), dtype, f"{path.name}: U-Net")
        fill(vae, convert.convert_ldm_vae_checkpoint(state, dict(vae.config)), torch.float32, f"{path.name}: VAE")
        texts = tuple(
            (words(text), _text(text, state, dtype, path.name, model))
            for text, model in zip(parts.texts, old, strict=True)
        )
    except KeyError as error:  # what a converter looks for by name
        raise EngineError("load_failed", f"{path.name} lacks {error.args[0]}") from error
    return Components(texts, unet, vae, {**parts.scheduler, **_prediction(state)}, parts)


def _modules(parts: Architecture, into: Components | None) -> tuple[Any, Any, list[Any]]:
    """U-Net, VAE and text encoders to fill: those of ``into`` where they fit, else empty ones (None: to be made)."""
    import diffusers

    if into is not None and into.architecture == parts:
        return into.unet, into.vae, [model for _, model in into.texts]
    # Typed as Any: diffusers does not annotate its models' constructors.
    models: Any = diffusers
    with torch.device("meta"):
        return models.UNet2DConditionModel(**parts.unet), models.AutoencoderKL(**parts.vae), [None] * len(parts.texts)


class _Whole(dict[str, torch.Tensor]):
    """A checkpoint's tensors, and those of the VAE that the list beside it names where it holds none itself."""

    def __init__(self, path: Path) -> None:
        self.open = [Views(path)]
        super().__init__(self.open[0])
        named = listed(path).get("vae")
        if named is None or any(name.startswith(VAE) for name in self):
            return
        other = Views(named)
        begin = next((begin for begin in FILED["vae"] if f"{begin}{SHOWN['vae']}" in other), None)
        if begin is None:
            raise EngineError("load_failed", f"{named.name}, which is named for the VAE, holds none")
        self.open.append(other)
        self.update({f"{VAE}{name.removeprefix(begin)}": t for name, t in other.items() if name.startswith(begin)})


def tokenizer_of(text: Text) -> Any:
    """CLIP's tokenizer; for OpenCLIP's encoders it pads with ``!``, whose token is 0."""
    return clip_tokenizer("!") if text.open_clip else clip_tokenizer()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors, as views of the mapped file."""
    return Views(path)


def _text(part: Text, state: Mapping[str, torch.Tensor], dtype: torch.dtype, name: str, model: Any) -> Any:
    """The text encoder; ``model`` is one whose memory is taken."""
    import transformers
    from diffusers.loaders import single_file_utils

    convert: Any = single_file_utils
    kind: Any = transformers.CLIPTextModelWithProjection if part.pools else transformers.CLIPTextModel
    settings: Any = transformers.CLIPTextConfig
    config = settings(**part.config)
    own = {key: tensor for key, tensor in state.items() if key.startswith(part.prefix)}
    text = model
    if text is None:
        with torch.device("meta"):
            text = kind(config)
    if part.open_clip:
        converted = convert.convert_open_clip_checkpoint(text, own, prefix=f"{part.prefix}model.")
    else:
        converted = convert.convert_ldm_clip_checkpoint(own)
    # A table of 0, 1, 2 … that older files keep as a parameter, and a projection that only pictures are compared by.
    for extra in ("text_model.embeddings.position_ids", *(() if part.pools else ("text_projection.weight",))):
        converted.pop(extra, None)
    fill(text, converted, dtype, f"{name}: text encoder")
    embeddings = text.text_model.embeddings
    embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return text


def _prediction(state: Iterable[str]) -> dict[str, Any]:
    """What trainers of v-prediction models mark with empty tensors (``v_pred``, ``ztsnr``)."""
    marks = set(state)
    return ({"prediction_type": "v_prediction"} if "v_pred" in marks else {}) | (
        {"rescale_betas_zero_snr": True} if "ztsnr" in marks else {}
    )


def fill(module: Any, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, what: str) -> None:
    """Give a module its weights, every one of them and nothing else; one on the host keeps its memory.

    Raises:
        EngineError: ``load_failed`` with the first names that are missing, unknown or of another shape.
    """
    wanted: Mapping[str, torch.Tensor] = module.state_dict()
    check(wanted, tensors, what)
    # Copies: the file may be replaced while its weights are in use.
    own = {
        name: torch.empty(tensor.shape, dtype=dtype) if tensor.is_meta or tensor.dtype != dtype else tensor
        for name, tensor in wanted.items()
    }
    pour((tensor, tensors[name]) for name, tensor in own.items())
    if any(own[name] is not tensor for name, tensor in wanted.items()):
        module.load_state_dict(own, assign=True)
