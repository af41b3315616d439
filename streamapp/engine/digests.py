"""Which weights these are, told from the weights themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

#: Values of each tensor that count, spread evenly over it: enough to tell any two trainings apart, at no cost.
SPREAD = 64


def digest(tensors: Iterable[tuple[str, torch.Tensor]], *more: bytes) -> str:
    """A digest over names, shapes, types and :data:`SPREAD` values of each tensor, and over ``more``.

    Two files with the same weights have the same one, whatever their layout. It recognises weights, it does not
    protect against somebody who forges them: a change of a few single values may go unseen.
    """
    found = hashlib.sha256()
    for part in more:
        found.update(part)
    chosen: list[torch.Tensor] = []
    for name, tensor in tensors:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        if flat.numel():
            chosen.append(flat[:: max(1, flat.numel() // SPREAD)][:SPREAD].to(torch.float32))
    if chosen:
        found.update(torch.cat(chosen).cpu().numpy().tobytes())
    return found.hexdigest()[:32]
