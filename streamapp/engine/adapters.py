"""LoRA files: read into factors by layer, and refused where they would be drawn wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from streamapp.engine.digests import digest
from streamapp.engine.errors import EngineError
from streamapp.engine.sample import Sample

#: Layouts whose effect is not a plain low-rank product: drawn with the code below they would be wrong, not missing.
OTHER_KINDS = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    # Trained together with a wider input and norms.
    "query_norm": "Flux Control LoRA",
    "lora_mid": "LoCon with a Tucker core",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "on_input": "IA3",
    "w_norm": "LoRA with norms",
    "b_norm": "LoRA with norms",
    "diff": "LoRA with whole differences",
    "diff_b": "LoRA with biases",
}
#: Where training scripts of diffusers write peft's configuration, in the file's header.
CONFIGURATION = "lora_adapter_metadata"
#: Characters of a library's reason that are told.
LONGEST = 300
#: Names of adapters with their weights.
Combination = tuple[tuple[str, float], ...]
Factors = tuple[torch.Tensor, torch.Tensor]
#: Gives the tensors of a LoRA's file, by name.
Tensors = Callable[[], Mapping[str, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One loaded file: factors ``(A (r, in…), B transposed (r, out))`` by module name, alpha folded into B."""

    name: str
    parts: Mapping[str, Mapping[str, Factors]]  # "unet" | "text_encoder" | "text_encoder_2" → module → factors
    bytes: int

    @cached_property
    def digest(self) -> str:
        """Which weights these are."""
        pairs = ((f"{part}.{name}", pair) for part, found in self.parts.items() for name, pair in found.items())
        return digest((f"{name}.{place}", pair[place]) for name, pair in pairs for place in (0, 1))


def read_adapter(
    name: str, raw: Mapping[str, torch.Tensor], targets: Mapping[str, nn.Module], config: Any, device: str, loader: str
) -> Adapter:
    """The factors of a LoRA file's tensors, in any layout that diffusers reads.

    Args:
        loader: the class of diffusers that knows the family.

    Raises:
        EngineError: ``incompatible_lora`` naming the kind or the layer.
    """
    from diffusers.loaders import lora_pipeline

    _plain(name, raw)
    try:
        found = getattr(lora_pipeline, loader).lora_state_dict(dict(raw), unet_config=config)
        said = json.loads(getattr(raw, "metadata", {}).get(CONFIGURATION, "{}"))
    except (ValueError, KeyError, IndexError, AssertionError) as error:
        message = f"LoRA {name!r} does not fit this family: {shorten(str(error), LONGEST)}"
        raise EngineError("incompatible_lora", message, lora=name) from error
    # Readers of transformers give no alphas apart: what the file has of them is among the rest.
    state, alphas = found if isinstance(found, tuple) else (found, {k: v for k, v in found.items() if "alpha" in k})
    alphas, said = alphas or {}, said if isinstance(said, dict) else {}
    _all_for(name, state, targets)
    parts = {
        part: _factors(name, part, module, _part(state, part), (_part(alphas, part), _part(said, part)), device)
        for part, module in targets.items()
    }
    if not any(parts.values()):
        raise EngineError("incompatible_lora", f"LoRA {name!r} has no layer of this family", lora=name)
    size = sum(t.numel() * t.element_size() for part in parts.values() for pair in part.values() for t in pair)
    return Adapter(name, parts, size)


def _plain(name: str, raw: Mapping[str, torch.Tensor]) -> None:
    """Refuse what is no plain product of two factors, by the ends of its keys."""
    for key, tensor in raw.items():
        kind = OTHER_KINDS.get(key.rsplit(".", 1)[-1]) or OTHER_KINDS.get(key.split(".")[-2] if "." in key else "")
        # Some trainers write differences that are zero.
        if kind and (".diff" not in key or tensor.any()):
            raise EngineError("incompatible_lora", f"LoRA {name!r} is a {kind}, which is not supported", lora=name)


def _all_for(name: str, state: Mapping[str, Any], targets: Mapping[str, nn.Module]) -> None:
    """Refuse factors that nothing would be done with: the picture would lack them in silence."""
    for key in state:
        part = key.partition(".")[0]
        if "lora" in key and part not in targets:
            message = f"LoRA {name!r} has factors for {part}, which LoRAs do not change here ({', '.join(targets)})"
            raise EngineError("incompatible_lora", message, lora=name, layer=key)


def hold(sample: Sample, adapters: Mapping[str, Adapter]) -> None:
    """Have a sample keep its adapters alive until it ends."""
    for name, _ in sample.adapters:
        sample.shared.get(("LoRA", name), partial(adapters.__getitem__, name))


def _part(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def _factors(
    name: str, part: str, target: nn.Module, state: dict[str, Any], scales: tuple[Mapping[str, Any], ...], device: str
) -> dict[str, Factors]:
    """The factors of one component, in the names of its modules; ``scales``: alphas by key, and its configuration."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    if not state:
        return {}
    rename: Any = convert_unet_state_dict_to_peft if part == "unet" else convert_state_dict_to_peft
    if not any("lora_A" in key for key in state):
        state = rename(state)
    alphas, said = {_module(key, rename): float(value) for key, value in scales[0].items()}, scales[1]
    modules = dict(target.named_modules())
    found: dict[str, Factors] = {}
    for key, down in state.items():
        if ".lora_A." not in key or key.endswith(".bias"):
            if ".lora_B.weight" not in key and "alpha" not in key:
                message = f"LoRA {name!r} has {part}.{key}, which is neither of two factors"
                raise EngineError("incompatible_lora", message, lora=name, layer=key)
            continue
        module = key.split(".lora_A.")[0]
        up = state.get(key.replace(".lora_A.", ".lora_B."))
        layer = modules.get(module)
        weight = getattr(layer, "weight", None)
        if up is None or weight is None or not isinstance(layer, nn.Linear | nn.Conv2d):
            raise EngineError(
                "incompatible_lora", f"LoRA {name!r}: {part} has no layer {module}", lora=name, layer=module
            )
        rank = down.shape[0]
        if down.shape[1] != weight.shape[1] or up.shape[0] != weight.shape[0] or up.shape[1] != rank:
            raise EngineError(
                "incompatible_lora",
                f"LoRA {name!r}: layer {module} is {tuple(weight.shape)}, the LoRA's factors are"
                f" {tuple(up.shape)} and {tuple(down.shape)}; it was made for another family",
                lora=name,
                layer=module,
            )
        scale = alphas[module] / rank if module in alphas else _said(said, module, rank)
        dtype = weight.dtype
        folded = (up.float() * scale).reshape(up.shape[0], rank).to(device=device, dtype=dtype)
        found[module] = (down.to(device=device, dtype=dtype), folded.T.contiguous())
    return found


def _module(key: str, rename: Any) -> str:
    """The module an alpha belongs to; its key is a factor's or the module's, with ``.alpha`` behind."""
    (renamed,) = rename({key.removesuffix(".alpha"): None})
    for ending in (
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora.down.weight",
        ".lora_linear_layer.down.weight",
        ".weight",
    ):
        renamed = renamed.removesuffix(ending)
    return str(renamed)


def _said(configuration: Mapping[str, Any], module: str, rank: int) -> float:
    """The scale of a layer by peft's configuration: 1 where none is written."""
    from peft.utils.other import get_pattern_key

    patterns: Mapping[str, Any] = configuration.get("alpha_pattern") or {}
    found = patterns.get(get_pattern_key(list(patterns), module))
    alpha = float(configuration.get("lora_alpha", rank) if found is None else found)
    return alpha / (rank**0.5 if configuration.get("use_rslora") else rank)
