"""Reads Flux.1 and Stable Diffusion 3 from single files in the layouts of their publishers, without any network.

A file may hold the transformer only, as most of those that people share, or text encoders and VAE as well; what it
lacks comes from the files or folders that the caller names. Modules are built empty, and every parameter and buffer is
read from a file straight to where it belongs: joined matrices are cut without a second copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from streamapp.engine import components
from streamapp.engine.clip_vocabulary import clip_tokenizer
from streamapp.engine.component_list import T5_VOCABULARY, listed
from streamapp.engine.errors import EngineError
from streamapp.engine.flow_architectures import TITLES, FlowArchitecture, flow_architecture, prefix_of, t5_encoder
from streamapp.engine.layouts import LAYOUTS, Piece
from streamapp.engine.named_parts import FILED, Found, find, missing
from streamapp.engine.t5_vocabulary import FILE, t5_tokenizer
from streamapp.engine.weights_file import WeightsFile

#: By family: component, where its module goes, where its tokenizer goes, whether it pools.
TEXTS: Mapping[str, tuple[tuple[str, str, str, bool], ...]] = {
    "flux": (("clip_l", "text_encoder", "tokenizer", False), ("t5", "text_encoder_2", "tokenizer_2", False)),
    "sd3": (
        ("clip_l", "text_encoder", "tokenizer", True),
        ("clip_g", "text_encoder_2", "tokenizer_2", True),
        ("t5", "text_encoder_3", "tokenizer_3", False),
    ),
}
#: Components that a checkpoint draws without.
OPTIONAL = {"sd3": frozenset({"t5"}), "flux": frozenset[str]()}
KINDS = {"flux": "FluxTransformer2DModel", "sd3": "SD3Transformer2DModel"}
#: Keys of weights in four bits; those of eight bits with scales are read.
FOUR_BITS = (".absmax", ".quant_map", "bitsandbytes__nf4", "bitsandbytes__fp4")
#: Keys of scaled weights that are not known here.
SCALED = (".weight_scale", ".comfy_quant", ".weight_scale_2")
#: Of text encoders' files: a table of 0, 1, 2 …, the sides that see pictures and write text, and their scale.
UNUSED = (
    "text_model.embeddings.position_ids",
    "logit_scale",
    "vision_model.",
    "visual_projection.",
    "decoder.",
    "lm_head.",
)
SCALE, SCALE_MARK, INPUT_SCALE = ".scale_weight", "scaled_fp8", ".scale_input"


def read_flow_file(
    path: Path,
    family: str,
    dtype: torch.dtype,
    named: Mapping[str, str | Path] | None = None,
    *,
    architecture: FlowArchitecture | None = None,
    tokenizers: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The components by the names of a diffusers folder, and the scheduler's configuration; the VAE in float32.

    Args:
        named: where ``vae``, ``clip_l``, ``clip_g`` and ``t5`` come from when the file lacks them, and with
            ``t5_vocabulary`` T5's; it goes before the list beside the file.
        architecture: for files whose text encoders and VAE are none of the published ones.
        tokenizers: by component, in place of the published ones.

    Raises:
        EngineError: ``load_failed`` naming what is missing, of a wrong shape or of an encoding that is not read.
    """
    given, words = {**_beside(path), **(named or {})}, tokenizers or {}
    with ExitStack() as stack:
        file = stack.enter_context(WeightsFile(path))
        own, shown = _opened(file, family)
        parts = architecture or shown
        read: dict[str, Any] = {"transformer": _transformer(family, own, parts, file, dtype)}
        places = {name: find(name, file, given, stack) for name in ("vae", *(text[0] for text in TEXTS[family]))}
        lacking = [name for name, place in places.items() if place is None and name not in OPTIONAL[family]]
        if lacking:
            raise missing(path.name, lacking)
        read["vae"] = _vae(places["vae"], parts)
        for name, module, tokenizer, pools in TEXTS[family]:
            read[module] = _text(name, places[name], parts, dtype, pools=pools)
            read[tokenizer] = None if read[module] is None else words.get(name) or _words(name, places[name], given)
    return read, dict(parts.scheduler)


def _beside(path: Path) -> dict[str, str | Path]:
    """What the list beside a file names, and T5's vocabulary in its folder."""
    vocabulary = path.parent / FILE
    return {**({T5_VOCABULARY: vocabulary} if vocabulary.is_file() else {}), **listed(path)}


def read_transformer(path: Path, family: str, dtype: torch.dtype) -> Any:
    """The transformer of a file alone (``load_failed``)."""
    with WeightsFile(path) as file:
        own, parts = _opened(file, family)
        return _transformer(family, own, parts, file, dtype)


def _opened(file: WeightsFile, family: str) -> tuple[dict[str, torch.Tensor], FlowArchitecture]:
    """The transformer's tensors, and what architecture they show."""
    prefix = prefix_of(family, file.tensors)
    if prefix is None:
        raise EngineError("load_failed", f"{file.name} holds no {TITLES[family]} transformer")
    refuse_encodings(file)
    own = _under(file, prefix)
    return own, flow_architecture(family, {name: tuple(tensor.shape) for name, tensor in own.items()}, file.name)


def refuse_encodings(file: WeightsFile) -> None:
    """Refuse a file whose weights are stored in a way that is not read (``load_failed``, by name)."""
    for name in file.tensors:
        if any(mark in name for mark in FOUR_BITS):
            raise EngineError("load_failed", f"{file.name} is stored in four bits, nf4 or fp4 ({name}), which is not "
                              "read: take its fp16, bf16 or fp8 file")  # fmt: skip
        if name.endswith(SCALED):
            raise EngineError("load_failed", f"{file.name} is stored with scales that are not read ({name}): take its"
                              " fp16, bf16 or plain fp8 file")  # fmt: skip


def _under(file: WeightsFile, prefix: str) -> dict[str, torch.Tensor]:
    """A component's tensors, names without the prefix."""
    own = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    if prefix:
        return own
    others = tuple(begin for begins in FILED.values() for begin in begins if begin)
    return {name: tensor for name, tensor in own.items() if not name.startswith(others)}


def _transformer(
    family: str, own: Mapping[str, torch.Tensor], parts: FlowArchitecture, file: WeightsFile, dtype: torch.dtype
) -> Any:
    import diffusers

    with torch.device("meta"):
        module: Any = getattr(diffusers, KINDS[family])(**parts.transformer)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    pour(module, own, LAYOUTS[family](wanted), file, dtype, "transformer")
    return module


def _vae(place: Found | None, parts: FlowArchitecture) -> Any:
    import diffusers
    from diffusers.loaders import single_file_utils

    if place is None:
        return None
    models: Any = diffusers
    if isinstance(place.where, Path):
        return _from_folder(models.AutoencoderKL, place.where, torch_dtype=torch.float32)
    own = _under(place.where, place.prefix)
    with torch.device("meta"):
        vae: Any = models.AutoencoderKL(**parts.vae)
    if any(key.startswith("decoder.up_blocks.") for key in own):
        converted: Mapping[str, torch.Tensor] = own
    else:
        convert: Any = single_file_utils
        try:
            filed = {f"first_stage_model.{key}": tensor for key, tensor in own.items()}
            converted = convert.convert_ldm_vae_checkpoint(filed, dict(vae.config))
        except KeyError as error:  # what the converter looks for by name
            raise EngineError("load_failed", f"{place.where.name}: VAE lacks {error.args[0]}") from error
    pour(vae, converted, None, place.where, torch.float32, "VAE")
    return vae


def _text(name: str, place: Found | None, parts: FlowArchitecture, dtype: torch.dtype, *, pools: bool) -> Any:
    import transformers

    if place is None:
        return None
    library: Any = transformers
    if name == "t5":
        kind = library.T5EncoderModel
    else:
        kind = library.CLIPTextModelWithProjection if pools else library.CLIPTextModel
    if isinstance(place.where, Path):
        return _from_folder(kind, place.where, dtype=dtype)
    refuse_encodings(place.where)
    own = _under(place.where, place.prefix)
    try:
        shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
        config = library.T5Config(**t5_encoder(shapes)) if name == "t5" else library.CLIPTextConfig(**parts.clips[name])
    except (KeyError, ValueError) as error:
        raise EngineError("load_failed", f"{place.where.name}: {name} lacks {error}") from error
    with torch.device("meta"):
        module: Any = kind(config)
    others = UNUSED if pools else (*UNUSED, "text_projection.")
    own = {key: tensor for key, tensor in own.items() if not key.startswith(others)}
    if name == "t5":
        own["encoder.embed_tokens.weight"] = own["shared.weight"]
    pour(module, own, None, place.where, dtype, name)
    if name == "t5":
        module.encoder.embed_tokens.weight = module.shared.weight  # one matrix, as published
    else:
        module.text_model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return module


def _words(name: str, place: Found | None, given: Mapping[str, str | Path]) -> Any:
    """A text encoder's tokenizer."""
    if name == "t5":
        folder = place.where if place is not None and isinstance(place.where, Path) else None
        return t5_tokenizer(given.get(T5_VOCABULARY), folder)
    return clip_tokenizer("!") if name == "clip_g" else clip_tokenizer()


def pour(
    module: Any,
    own: Mapping[str, torch.Tensor],
    layout: Mapping[str, Piece] | None,
    file: WeightsFile,
    dtype: torch.dtype,
    what: str,
) -> None:
    """Give an empty module its weights, every parameter and persistent buffer and nothing else.

    Args:
        own: the component's tensors, which lie in ``file``.
        layout: what each takes; None: the tensor of its own name.

    Raises:
        EngineError: ``load_failed`` with the first names that are missing, unknown or of another shape.
    """
    wanted = module.state_dict()
    pieces = {name: Piece(name) for name in wanted} if layout is None else layout
    scales = {name.removesuffix(SCALE): tensor for name, tensor in own.items() if name.endswith(SCALE)}
    given: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for name, piece in pieces.items():
        if piece.source in own:
            used.add(piece.source)
            given[name] = own[piece.source][piece.begin : piece.end] if piece.begin or piece.end else own[piece.source]
    for name in own.keys() - used:
        if not name.endswith((SCALE, INPUT_SCALE)) and name != SCALE_MARK:
            given[f"({name})"] = own[name]
    components.check(wanted, given, f"{file.name}: {what}")
    made = {name: torch.empty(tensor.shape, dtype=dtype) for name, tensor in wanted.items()}

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for name, target in made.items():
            piece, source = pieces[name], given[name]
            scale = scales.get(piece.source.removesuffix(".weight"))
            if scale is not None:
                source = source.float() * scale.float()
            if piece.swapped:
                half = target.shape[0] // 2
                yield target[:half], source[half:]
                yield target[half:], source[:half]
            else:
                yield target, source

    file.pour(pairs())
    module.load_state_dict(made, assign=True)


def _from_folder(kind: Any, folder: Path, **dtype: torch.dtype) -> Any:
    """A component in diffusers' layout (``load_failed``)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError("load_failed", f"{error}") from error
