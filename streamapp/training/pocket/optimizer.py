"""Muon for weights that are matrices, AdamW for the rest.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), as torch has it for matrices;
a convolution's weight ``(out, in, k, k)`` is seen as the matrix ``(out, in·k·k)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


class Optimizer:
    """Both, under one cosine schedule.

    Args:
        named: parameters by name.
        rate: of Muon, at the root mean square of AdamW's steps.
        rest: rate of AdamW for what is no matrix; tokens' embeddings have five times that.
        steps: until the rate is zero; the first hundredth warms up.
    """

    def __init__(self, named: Mapping[str, torch.nn.Parameter], rate: float, rest: float, steps: int) -> None:
        tokens = {name for name in named if "token_embedding" in name}
        matrices = {name for name, weight in named.items() if weight.dim() >= 2 and "embedding.weight" not in name}
        self._weights = [named[name] for name in sorted(matrices)]
        self._views = [torch.nn.Parameter(weight.data.view(weight.shape[0], -1)) for weight in self._weights]
        others = [weight for name, weight in sorted(named.items()) if name not in matrices | tokens]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(self._views, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [
                    {"params": others, "lr": rest},
                    {"params": [named[name] for name in sorted(tokens)], "lr": 5 * rest},
                ],
                betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        ]
        self._rates = [[float(group["lr"]) for group in part.param_groups] for part in self._parts]
        self._steps = steps

    def step(self, number: int) -> None:
        """Apply the gradients of step ``number`` (from 0), and clear them."""
        share = min(1.0, number / self._steps)
        factor = min(1.0, (number + 1) / max(1, self._steps // 100)) * 0.5 * (1 + math.cos(math.pi * share))
        for part, rates in zip(self._parts, self._rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        for weight, view in zip(self._weights, self._views, strict=True):
            view.grad = None if weight.grad is None else weight.grad.view_as(view)
        for part in self._parts:
            part.step()
        for weight in self._weights:
            weight.grad = None
        self._parts[1].zero_grad()

    def state_dict(self) -> list[Any]:
        """For a checkpoint."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, state: list[Any]) -> None:
        """From a checkpoint."""
        for part, kept in zip(self._parts, state, strict=True):
            part.load_state_dict(kept)


def average(weights: list[torch.nn.Parameter], share: float) -> None:
    """Make the gradients the mean over all processes; ``share`` is one process's part."""
    found = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in found]).mul_(share)
    if share < 1:
        torch.distributed.all_reduce(flat)
    for grad, mean in zip(found, torch.split(flat, [grad.numel() for grad in found]), strict=True):
        grad.copy_(mean.view_as(grad))
