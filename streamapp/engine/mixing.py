"""Rows with different LoRAs in one forward: per layer one buffer of factors, a row of it for each row of the batch.

A combination is one low-rank product: Σ wᵢ·BᵢAᵢ = [w₁B₁ …][A₁; …] (Hu et al. 2021 for the factors; one batched product
for all rows is the idea of Punica and S-LoRA). A forward hook adds each row's own product in a side branch, so the base
weights never change. A buffer's row is written only when another combination comes to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn import functional

from streamapp.engine.adapters import Adapter, Combination

#: What a row holds: the adapters themselves (a name may be loaded anew) with their weights.
Content = tuple[tuple[Adapter, float], ...]
#: A factor ``(rank, in…)``, the other ``(rank, out)``, and the adapter's weight.
Weighted = tuple[torch.Tensor, torch.Tensor, float]
#: Ranks are padded to multiples of it.
RANKS = 8
#: Ranks that a product of one row's own costs beside its own ones.
OWN_PRODUCT = 32


class Mixer:
    """Adds per-row combinations of adapters to the layers of one component.

    Attributes:
        written: bytes of factors that were written to buffers so far.
        lingering: unloaded adapters that samples still hold.
    """

    def __init__(self, part: str, target: nn.Module) -> None:
        self._part = part
        self._modules = dict(target.named_modules())
        self._layers: dict[str, _Layer] = {}
        self._held: list[Content] = []
        self._rows: tuple[Combination, ...] = ()
        self._asked: tuple[Combination, ...] = ()
        self._order: list[int] = []
        self.lingering: WeakValueDictionary[str, Adapter] = WeakValueDictionary()
        self._switch = _Switch()
        self.written = 0

    @property
    def bytes(self) -> int:
        """Memory of the buffers."""
        return sum(layer.bytes for layer in self._layers.values())

    def close(self) -> None:
        """Leave the component as it was: others will draw with it."""
        for layer in self._layers.values():
            layer.hook.remove()
        self._layers.clear()
        self._modules.clear()

    def attach(self, adapter: Adapter) -> None:
        """Hook the layers an adapter touches (once each)."""
        for name in adapter.parts[self._part]:
            if name not in self._layers:
                self._layers[name] = _Layer(self._modules[name], self._switch)

    def forget(self, adapter: Adapter) -> None:
        """An adapter was unloaded; samples that hold it are drawn with it until they end."""
        self._rows = ()
        self.lingering[adapter.name] = adapter

    def arrange(self, rows: Sequence[Combination]) -> list[int] | None:
        """The order of a batch's rows that leaves most of the buffers as they are, rows with adapters first.

        None: as they come.
        """
        if not any(rows) or tuple(rows) == self._rows:
            return None
        if tuple(rows) == self._asked:
            return self._order
        some = [place for place, row in enumerate(rows) if row]
        free = dict.fromkeys(some)
        order: list[int | None] = []
        for held in self._held[: len(some)]:
            name = tuple((adapter.name, weight) for adapter, weight in held)
            found = next((place for place in free if rows[place] == name), None)
            order.append(found)
            if found is not None:
                del free[found]
        order += [None] * (len(some) - len(order))
        rest = iter(free)
        first = [next(rest) if place is None else place for place in order]
        self._asked = tuple(rows)
        self._order = [*first, *(place for place, row in enumerate(rows) if not row)]
        return self._order

    def use(self, rows: Sequence[Combination], adapters: Mapping[str, Adapter]) -> None:
        """The combination of each row of the forwards that follow; none: they run without.

        Raises:
            KeyError: a row names an adapter that is not there, and that nobody holds.
        """
        self._switch.on = any(rows)
        if not self._switch.on or tuple(rows) == self._rows:
            return
        wanted: list[Content] = [
            tuple((adapters.get(name) or self.lingering[name], weight) for name, weight in row) for row in rows
        ]
        while not wanted[-1]:
            wanted.pop()
        changed = [row for row, content in enumerate(wanted) if row >= len(self._held) or content != self._held[row]]
        for name, layer in self._layers.items():
            parts = {row: _parts(wanted[row], self._part, name) for row in changed}
            self.written += layer.write(parts, len(wanted))
        self._held = wanted
        self._rows = tuple(rows)


def _parts(content: Content, part: str, layer: str) -> list[Weighted]:
    """The factors for one layer that a combination has, with their weights."""
    found = []
    for adapter, weight in content:
        pair = adapter.parts[part].get(layer)
        if pair is not None:
            found.append((*pair, weight))
    return found


class _Switch:
    """Whether the forwards that run now have rows with adapters."""

    on = False


class _Layer:
    """A hooked layer: its buffers ``down (rows, rank, in)``, ``up (rows, rank, out)``, zero beyond a row's rank."""

    def __init__(self, module: nn.Module, switch: _Switch) -> None:
        self._switch = switch
        weight: Any = module.weight
        self._out, self._in = int(weight.shape[0]), int(weight[0].numel())
        self._kernel = tuple(weight.shape[1:])
        self._down = weight.new_zeros(0, 0, self._in)
        self._up = weight.new_zeros(0, 0, self._out)
        self._ranks: list[int] = []
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None
        #: Ranks of the rows for which the factors below were cut from the buffers.
        self._seen: tuple[int, ...] = ()
        self._rest: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._conv = module if isinstance(module, nn.Conv2d) else None
        self.hook = module.register_forward_hook(self._add if self._conv is None else self._add_conv)

    @property
    def bytes(self) -> int:
        """Memory of the buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in (self._down, self._up))

    def write(self, parts: Mapping[int, Sequence[Weighted]], rows: int) -> int:
        """Write the rows that changed; from now on the first ``rows`` are used. Bytes written."""
        totals = {row: sum(down.shape[0] for down, _, _ in pairs) for row, pairs in parts.items()}
        kept = self._ranks[:rows] + [0] * (rows - len(self._ranks))
        self._fit(rows, max(totals.get(row, rank) for row, rank in enumerate(kept)))
        size = 0
        for row, pairs in parts.items():
            total, before = totals[row], self._ranks[row]
            if pairs:
                up = self._up[row, :total]
                torch.cat([down.flatten(1) for down, _, _ in pairs], out=self._down[row, :total])
                torch.cat([factor for _, factor, _ in pairs], out=up)
                up.mul_(_weights(tuple((down.shape[0], weight) for down, _, weight in pairs), up.device, up.dtype))
                size += total * (self._in + self._out) * up.element_size()
            if before > total:
                self._down[row, total:before] = 0
                self._up[row, total:before] = 0
            self._ranks[row] = total
        self._view(rows)
        return size

    def _fit(self, rows: int, rank: int) -> None:
        """Make room for rows and rank; room is given back when the rank in use fell to half."""
        held_rows, held = self._down.shape[:2]
        padded = -(-rank // RANKS) * RANKS
        if rows <= held_rows and (padded == held or held // 2 < padded < held):
            return
        same, fits = min(rows, held_rows), min(padded, held)
        self._seen = ()
        for name in ("_down", "_up"):
            old: torch.Tensor = getattr(self, name)
            new = old.new_zeros(max(rows, held_rows), padded, old.shape[2])
            new[:same, :fits] = old[:same, :fits]
            setattr(self, name, new)
        self._ranks = [min(known, padded) for known in self._ranks[:same]] + [0] * (max(rows, held_rows) - same)

    def _view(self, rows: int) -> None:
        """What the hook multiplies with; nothing when no row has an adapter here."""
        ranks = tuple(self._ranks[:rows])
        if ranks == self._seen:
            return
        self._seen, self._rest, self._factors = ranks, [], None
        if not any(ranks):
            return
        down, up = self._down[:rows], self._up[:rows]
        if self._conv is not None:
            self._factors = down.reshape(-1, *self._kernel), up.transpose(1, 2)
            return
        shared = _shared(ranks)
        self._factors = down[:, :shared].transpose(1, 2), up[:, :shared]
        self._rest = [
            (row, down[row, shared:rank].T, up[row, shared:rank]) for row, rank in enumerate(ranks) if rank > shared
        ]

    def _add(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Add each row's product to a linear layer's fresh output ``(B, ..., out)``, in place."""
        if not self._switch.on or self._factors is None:
            return
        down, up = self._factors
        rows, value = up.shape[0], args[0]
        if value.shape[0] != rows:
            value, output = value[:rows], output[:rows]
        if value.dim() != 3:
            value = value.reshape(rows, -1, value.shape[-1])
            output = output.view(rows, -1, output.shape[-1])
        output.baddbmm_(torch.bmm(value, down), up)
        for row, down, up in self._rest:
            output[row].addmm_(value[row] @ down, up)

    def _add_conv(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Add each row's product to a convolution's fresh output; rows become groups of one grouped convolution."""
        if not self._switch.on or self._factors is None or self._conv is None:
            return
        down, up = self._factors
        rows, conv = up.shape[0], self._conv
        value = args[0][:rows]
        inner = functional.conv2d(
            value.reshape(1, -1, *value.shape[2:]),
            down,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=rows,
        )
        inner = inner.view(rows, up.shape[2], -1)
        some = output[:rows]
        some.add_(torch.bmm(up, inner).view_as(some))


@lru_cache(maxsize=256)
def _shared(ranks: tuple[int, ...]) -> int:
    """The rank to which all rows are padded for one product; what a row has beyond it is a product of its own."""

    def work(shared: int) -> int:
        return len(ranks) * shared + sum(rank - shared + OWN_PRODUCT for rank in ranks if rank > shared)

    return min({-(-rank // RANKS) * RANKS for rank in ranks if rank}, key=work)


@lru_cache(maxsize=256)
def _weights(ranks: tuple[tuple[int, float], ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Each adapter's weight, once for each of its ranks, ``(total, 1)``."""
    values = [weight for rank, weight in ranks for _ in range(rank)]
    return torch.tensor(values, device=device, dtype=dtype)[:, None]
