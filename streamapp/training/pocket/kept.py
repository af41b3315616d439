"""The state of a training that is under way, so that it goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from streamapp.training.pocket.optimizer import Optimizer
from streamapp.training.pocket.work import Work

#: Seconds between two states on disk.
EVERY_S = 120.0


class Kept:
    """Networks, their moving averages and the optimizer, as ``NAME.pt`` in the work folder.

    Args:
        networks: by name.
        decay: of the moving averages, which are what is used in the end.
    """

    def __init__(
        self, work: Work, name: str, networks: Mapping[str, torch.nn.Module], optimizer: Optimizer, decay: float
    ) -> None:
        self._work, self._file, self._networks, self._optimizer = work, f"{name}.pt", networks, optimizer
        self._decay = decay
        self._saved = time.monotonic()
        self.step = 0
        path = work.path(self._file)
        state: dict[str, Any] = torch.load(path, weights_only=True) if path.exists() else {}
        if state:
            self.step = int(state["step"])
            optimizer.load_state_dict(state["optimizer"])
            for part, network in networks.items():
                network.load_state_dict(state["networks"][part])
        self.means = {part: deepcopy(network).eval().requires_grad_(False) for part, network in networks.items()}
        if state:
            for part, mean in self.means.items():
                mean.load_state_dict(state["means"][part])

    @torch.no_grad()
    def after(self, step: int, rank: int) -> None:
        """A step was taken: move the averages, and save now and then. Only the first process does."""
        if rank:
            return
        self.step = step + 1
        decay = min(self._decay, (1 + step) / (10 + step))
        for part, mean in self.means.items():
            averages: list[torch.Tensor] = list(mean.parameters())
            now: list[torch.Tensor] = list(self._networks[part].parameters())
            torch._foreach_lerp_(averages, now, 1 - decay)
        if time.monotonic() - self._saved > EVERY_S:
            self.save()

    def done(self, rank: int) -> None:
        """The last step was taken."""
        if rank == 0:
            self.save()

    def save(self) -> None:
        """Write the state."""
        state: dict[str, Any] = {
            "step": self.step,
            "optimizer": self._optimizer.state_dict(),
            "networks": {part: network.state_dict() for part, network in self._networks.items()},
            "means": {part: mean.state_dict() for part, mean in self.means.items()},
        }
        self._work.write(self._file, lambda part: torch.save(state, part))
        self._saved = time.monotonic()
