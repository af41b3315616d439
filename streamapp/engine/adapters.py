"""LoRA: many adapters resident, any combination per row of one forward.

A combination is one low-rank product: Σ wᵢ·BᵢAᵢ = [w₁B₁ …][A₁; …] (Hu et al. 2021 for the factors; the batched
gather is the idea of Punica and S-LoRA). A forward hook adds, for every row, its own product in a side branch, so
rows with different combinations and rows with none share one forward and the base weights never change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from streamapp.engine.errors import EngineError

#: Layouts whose effect is not a plain low-rank product: drawn with the code below they would be wrong, not missing.
OTHER_KINDS = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
}
Combination = tuple[tuple[str, float], ...]
Factors = tuple[torch.Tensor, torch.Tensor]
#: Combinations, and batches of them, whose stacked factors are kept.
KEPT = 64


@dataclass(frozen=True, eq=False)
class Adapter:
    """One loaded file: factors ``(A (r, in…), B (out, r))`` by module name, alpha folded into B."""

    name: str
    parts: Mapping[str, Mapping[str, Factors]]  # "unet" | "text_encoder" | "text_encoder_2" → module → factors
    bytes: int


def read_adapter(
    name: str, path: Path, targets: Mapping[str, nn.Module], config: Any, device: str, loader: str
) -> Adapter:
    """Read a safetensors LoRA in any layout that diffusers reads; ``loader`` names its class that knows the family.

    Raises:
        EngineError: ``load_failed`` for an unreadable file, ``incompatible_lora`` naming the kind or the layer.
    """
    from diffusers.loaders import lora_pipeline
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        raw = load_file(path)
    except (OSError, SafetensorError) as error:
        raise EngineError("load_failed", f"LoRA {name!r} cannot be read: {error}", lora=name) from error
    for key in raw:
        kind = OTHER_KINDS.get(key.rsplit(".", 1)[-1]) or OTHER_KINDS.get(key.split(".")[-2] if "." in key else "")
        if kind:
            raise EngineError("incompatible_lora", f"LoRA {name!r} is a {kind}, which is not supported", lora=name)
    try:
        state, alphas = getattr(lora_pipeline, loader).lora_state_dict(raw, unet_config=config)
    except (ValueError, KeyError, IndexError) as error:
        raise EngineError("incompatible_lora", f"LoRA {name!r} does not fit this family: {error}", lora=name) from error
    parts = {
        part: _factors(name, part, module, _part(state, part), _part(alphas or {}, part), device)
        for part, module in targets.items()
    }
    if not any(parts.values()):
        raise EngineError("incompatible_lora", f"LoRA {name!r} has no layer of this family", lora=name)
    size = sum(t.numel() * t.element_size() for part in parts.values() for pair in part.values() for t in pair)
    return Adapter(name, parts, size)


def _part(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def _factors(
    name: str, part: str, target: nn.Module, state: dict[str, Any], alphas: Mapping[str, Any], device: str
) -> dict[str, Factors]:
    """The factors of one component, in the names of its modules."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    if not state:
        return {}
    rename: Any = convert_unet_state_dict_to_peft if part == "unet" else convert_state_dict_to_peft
    if not any("lora_A" in key for key in state):
        state = rename(state)
    scale = {_module(key, rename): float(value) for key, value in alphas.items()}
    modules = dict(target.named_modules())
    found: dict[str, Factors] = {}
    for key, down in state.items():
        if ".lora_A." not in key:
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
        alpha = scale.get(module, float(rank))
        dtype = weight.dtype
        folded = (up.float() * (alpha / rank)).reshape(up.shape[0], rank).to(device=device, dtype=dtype)
        found[module] = (down.to(device=device, dtype=dtype), folded)
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


class Mixer:
    """Adds per-row combinations of adapters to the layers of one component."""

    def __init__(self, part: str, target: nn.Module) -> None:
        self._part = part
        self._modules = dict(target.named_modules())
        self._hooked: dict[str, Any] = {}
        self._stacks: OrderedDict[tuple[Combination, str], Factors | None] = OrderedDict()
        self._rows: Sequence[Combination] | None = None
        self._adapters: Mapping[str, Adapter] = {}
        self._batches: dict[str, tuple[tuple[Combination, ...], Factors]] = {}

    def attach(self, adapter: Adapter) -> None:
        """Hook the layers an adapter touches (once each)."""
        for name in adapter.parts[self._part]:
            if name not in self._hooked:
                layer = self._modules[name]
                self._hooked[name] = layer.register_forward_hook(self._hook(name))

    def forget(self, adapter: str) -> None:
        """Drop what was stacked with an adapter."""
        for key in [key for key in self._stacks if any(name == adapter for name, _ in key[0])]:
            del self._stacks[key]
        self._batches.clear()

    def use(self, rows: Sequence[Combination], adapters: Mapping[str, Adapter]) -> None:
        """The combination of each row of the forwards that follow."""
        self._rows = rows if any(rows) else None
        self._adapters = adapters

    def _hook(self, name: str) -> Any:
        def add(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if self._rows is None:
                return None
            factors = self._factors(name, tuple(self._rows))
            return None if factors is None else output + _product(layer, args[0], *factors)

        return add

    def _factors(self, name: str, rows: tuple[Combination, ...]) -> Factors | None:
        """Factors of every row, ``(B, r, in…)`` and ``(B, out, r)``, padded to the largest rank; kept per batch."""
        known = self._batches.get(name)
        if known is not None and known[0] == rows:
            return known[1]
        stacks = [self._stack(row, name) for row in rows]
        some = next((stack for stack in stacks if stack is not None), None)
        if some is None:
            return None
        rank = max(stack[0].shape[0] for stack in stacks if stack is not None)
        down = some[0].new_zeros(len(rows), rank, *some[0].shape[1:])
        up = some[1].new_zeros(len(rows), some[1].shape[0], rank)
        for row, stack in enumerate(stacks):
            if stack is not None:
                down[row, : stack[0].shape[0]] = stack[0]
                up[row, :, : stack[1].shape[1]] = stack[1]
        self._batches[name] = (rows, (down, up))
        return down, up

    def _stack(self, combination: Combination, name: str) -> Factors | None:
        """One combination's factors for one layer, concatenated along the rank; None when it has none."""
        key = (combination, name)
        if key in self._stacks:
            self._stacks.move_to_end(key)
            return self._stacks[key]
        pairs = [
            (down, up * weight)
            for adapter, weight in combination
            if (pair := self._adapters[adapter].parts[self._part].get(name)) is not None
            for down, up in (pair,)
        ]
        stack = (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)) if pairs else None
        self._stacks[key] = stack
        while len(self._stacks) > KEPT * max(1, len(self._hooked)):
            self._stacks.popitem(last=False)
        return stack


def _product(layer: nn.Module, value: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``up @ (down * value)`` per row; a convolution's rows become groups of one grouped convolution."""
    if isinstance(layer, nn.Conv2d):
        batch, channels, height, width = value.shape
        rank = down.shape[1]
        inner = functional.conv2d(
            value.reshape(1, batch * channels, height, width),
            down.reshape(batch * rank, *down.shape[2:]),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=batch,
        )
        inner = inner.reshape(batch, rank, *inner.shape[-2:])
        return torch.einsum("bor,brhw->bohw", up, inner)
    flat = value.unsqueeze(1) if value.dim() == 2 else value
    added = torch.bmm(torch.bmm(flat, down.transpose(1, 2)), up.transpose(1, 2))
    return added.squeeze(1) if value.dim() == 2 else added
