"""Modules as they go from tier to tier: told apart by architecture and weights, twinned on a device, filled anew.

An architecture is what a module's class and configuration make of it, down to every tensor's shape and type. Modules
of one architecture can take each other's weights; what a configuration holds beside (a VAE's scale and shift) goes
with the weights.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any

import orjson
import torch
from torch import nn

from streamapp.engine.digests import digest
from streamapp.engine.errors import EngineError

#: Of configurations, what is read when a module is used and shapes nothing.
VALUES = frozenset({"scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"})
#: Of configurations, who wrote them.
ORIGIN = frozenset({"architectures", "transformers_version", "torch_dtype", "dtype"})
#: Names of missing tensors that a message lists.
NAMED = 5


def architecture(module: nn.Module) -> str:
    """A digest of class, configuration, and every tensor's name, shape and type: equal ones can be filled anew."""
    config = {name: value for name, value in _config(module).items() if name not in VALUES | ORIGIN and name[:1] != "_"}
    found = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}\n".encode())
    found.update(orjson.dumps(config, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str))
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    return found.hexdigest()


def content(module: nn.Module) -> str:
    """Which weights and values these are: a sample of them, so equal ones must be compared (:func:`same`)."""
    values = {name: value for name, value in _config(module).items() if name in VALUES}
    return digest(module.state_dict().items(), repr(sorted(values.items())).encode())


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one architecture hold the same weights, bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(_bits(ours[name]), _bits(theirs[name]).to(ours[name].device)) for name in ours
    )


def size(module: nn.Module) -> int:
    """Bytes of its tensors, each counted once."""
    return sum({t.data_ptr(): t.nbytes for t in chain(module.parameters(), module.buffers())}.values())


def twin(module: nn.Module, device: str) -> nn.Module:
    """The same module with tensors of its own on a device."""
    memo: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        own = torch.empty_like(tensor, device=device, requires_grad=False).copy_(tensor.detach(), non_blocking=True)
        memo[id(tensor)] = nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own
    for holder in (module.__dict__.get("_internal_dict"), module.__dict__.get("config")):
        memo[id(holder)] = holder  # never changed, and diffusers' cannot be copied
    return copy.deepcopy(module, memo)


@torch.no_grad()
def refill(target: nn.Module, source: nn.Module, what: str = "module") -> None:
    """Give a module another one's weights, every parameter and persistent buffer, and its configuration's values.

    Raises:
        EngineError: ``load_failed`` naming what ``source`` lacks, has beside or in other shapes; nothing was written.
    """
    wanted, given = target.state_dict(), source.state_dict()
    check(wanted, given, what)
    for name, tensor in wanted.items():
        tensor.copy_(given[name], non_blocking=True)
    for holder in ("_internal_dict", "config"):
        if holder in source.__dict__:
            target.__dict__[holder] = source.__dict__[holder]


def check(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse what does not give exactly the tensors that are wanted (``load_failed``, with the first names)."""
    missing = sorted(wanted.keys() - given.keys())
    unknown = sorted(given.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & given.keys() if wanted[name].shape != given[name].shape)
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has another shape of", other)):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise EngineError("load_failed", f"{what} {problem} {', '.join(names[:NAMED])}{more}")


# Components as a family's reader gives them: modules somewhere in dictionaries, tuples and dataclasses.
def modules(parts: Any, place: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module with its place in words, in a fixed order."""
    if isinstance(parts, nn.Module):
        yield place, parts
    else:
        for name, part in _children(parts):
            yield from modules(part, f"{place}.{name}" if place else name)


def exchanged(parts: Any, instead: Mapping[int, nn.Module]) -> Any:
    """The same components with other modules in the places of those with these ids."""
    if isinstance(parts, nn.Module):
        return instead[id(parts)]
    if isinstance(parts, dict):
        return {name: exchanged(part, instead) for name, part in parts.items()}
    if isinstance(parts, tuple):
        return tuple(exchanged(part, instead) for part in parts)
    if is_dataclass(parts) and not isinstance(parts, type):
        return replace(parts, **{name: exchanged(part, instead) for name, part in _children(parts)})
    return parts


def _children(parts: Any) -> list[tuple[str, Any]]:
    if isinstance(parts, dict):
        return [(str(name), part) for name, part in parts.items()]
    if isinstance(parts, tuple):
        return [(str(number), part) for number, part in enumerate(parts)]
    if is_dataclass(parts) and not isinstance(parts, type):
        return [(field.name, getattr(parts, field.name)) for field in fields(parts)]
    return []


def _config(module: nn.Module) -> dict[str, Any]:
    """A module's configuration: diffusers' is a mapping, transformers' has to be asked."""
    config: Any = getattr(module, "config", None)
    if config is None:
        return {}
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Values that compare as they are stored: NaN equals itself."""
    plain = tensor.detach().contiguous()
    return plain.reshape(-1).view(torch.uint8) if plain.numel() else plain
