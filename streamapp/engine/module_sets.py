"""The VRAM tier: the modules that batches are drawn with, within a budget of bytes.

As many checkpoints as fit stay, and going from one to the other moves nothing. Beyond that the least recently used
that nobody draws with goes, and its modules take the weights of the next one where the architecture is the same: no
memory is given back and asked for again. A module that two checkpoints share is there once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from streamapp.engine import components
from streamapp.engine.errors import EngineError
from streamapp.engine.host_weights import Content, Host


@dataclass(eq=False)
class Placed:
    """A module on the device, with the content it has and the checkpoints that draw with it."""

    module: nn.Module
    architecture: str
    digest: str
    bytes: int
    users: set[str] = field(default_factory=set)

    def holds(self, content: Content) -> bool:
        """Whether its weights are these, bit for bit."""
        mine = (self.architecture, self.digest)
        return mine == (content.architecture, content.digest) and (
            self.module is content.module or components.same(self.module, content.module)
        )


class ModuleSets:
    """See the module. One thread calls it.

    Args:
        device: where modules are.
        budget: bytes.
    """

    def __init__(self, device: str, budget: int) -> None:
        self.budget = budget
        self._device = device
        self._placed: list[Placed] = []

    @property
    def bytes(self) -> int:
        """Of all modules."""
        return sum(placed.bytes for placed in self._placed)

    def place(
        self, name: str, host: Host, idle: Sequence[str], evict: Callable[[str], None], beside: int = 0
    ) -> tuple[Any, int]:
        """A checkpoint's components on the device, and the bytes that were moved.

        Args:
            idle: checkpoints that nobody draws with, the least recently used first.
            evict: lets go of one of them.
            beside: bytes that are taken by others than modules.

        Raises:
            EngineError: ``no_room`` (retryable) while the rest is drawn with; ``load_failed`` naming tensors that do
                not come.
        """
        found = {content: self._holding(content) for content in host.contents}
        missing = [content for content, placed in found.items() if placed is None]
        for placed in found.values():
            if placed is not None:
                placed.users.add(name)
        try:
            victims = self._victims(name, sum(content.bytes for content in missing) + beside, idle)
            for victim in victims:
                evict(victim)
            spare = self._freed(victims, {content.architecture for content in missing})
            for content in missing:
                found[content] = self._filled(name, content, host, spare)
        except BaseException:
            self.drop(name)
            raise
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)  # copies run behind the caller, pictures are decoded in another stream
        instead = {id(content.module): placed.module for content, placed in found.items() if placed is not None}
        return components.exchanged(host.parts, instead), sum(content.bytes for content in missing)

    def drop(self, name: str) -> None:
        """A checkpoint is gone: free what only it used."""
        for placed in self._placed:
            placed.users.discard(name)
        self._placed = [placed for placed in self._placed if placed.users]

    def _holding(self, content: Content) -> Placed | None:
        return next((placed for placed in self._placed if placed.holds(content)), None)

    def _victims(self, name: str, need: int, idle: Sequence[str]) -> list[str]:
        """Who must go so that ``need`` bytes more fit; whoever is left alone may be larger than the budget."""
        gone = {name}

        def held() -> int:
            return sum(placed.bytes for placed in self._placed if placed.users - gone or name in placed.users)

        chosen: list[str] = []
        for victim in idle:
            if held() + need <= self.budget:
                break
            chosen.append(victim)
            gone.add(victim)
        busy = sorted({user for placed in self._placed for user in placed.users} - gone)
        if held() + need > self.budget and busy:
            message = f"{name!r} needs {need / 1e6:.0f} MB, and {', '.join(busy)} are drawn with; it has to wait"
            raise EngineError("no_room", message, retryable=True, model=name)
        return chosen

    def _freed(self, victims: Sequence[str], wanted: set[str]) -> list[Placed]:
        """Take the victims' modules away: those of wanted architectures, to be filled anew; the others are freed."""
        for placed in self._placed:
            placed.users.difference_update(victims)
        free = [placed for placed in self._placed if not placed.users]
        self._placed = [placed for placed in self._placed if placed.users]
        return [placed for placed in free if placed.architecture in wanted]

    def _filled(self, name: str, content: Content, host: Host, spare: list[Placed]) -> Placed:
        """A module with this content: a spare one filled anew, what the RAM tier does not keep, or a twin."""
        placed = next((one for one in spare if one.architecture == content.architecture), None)
        if placed is not None:
            spare.remove(placed)
            components.refill(placed.module, content.module, name)
            placed.digest = content.digest
        else:
            module = components.twin(content.module, self._device) if host.kept else content.module.to(self._device)
            placed = Placed(module, content.architecture, content.digest, content.bytes)
        placed.users.add(name)
        self._placed.append(placed)
        return placed
