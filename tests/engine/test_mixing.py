"""Rows with different combinations of adapters in one forward, against each row's own weights added up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional

from streamapp.engine.adapters import Adapter, Combination
from streamapp.engine.mixing import Mixer

RANKS = {"thin": 4, "plain": 16, "wide": 100, "odd": 7}
ROWS: list[Combination] = [
    (("thin", 0.5),),
    (),
    (("thin", -1.0), ("plain", 0.75)),
    (("plain", 2.0), ("wide", 0.3), ("odd", 1.0)),
    (("thin", 0.5),),
    (("odd", 1.5),),
]


class Net(nn.Module):
    """A convolution, one of a single pixel, a linear layer on a sequence and one on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.point = nn.Conv2d(6, 6, 1)
        self.linear = nn.Linear(6, 5)
        self.vector = nn.Linear(5, 5)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """``(B, 3, h, w)`` to ``(B, 5)``."""
        hidden: torch.Tensor = self.linear(self.point(self.conv(value)).flatten(2).transpose(1, 2))
        result: torch.Tensor = self.vector(hidden.mean(1))
        return result


@pytest.fixture
def adapters() -> dict[str, Adapter]:
    torch.manual_seed(0)
    layers = {name: module for name, module in Net().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    made = {}
    for name, rank in RANKS.items():
        shapes = {layer: (rank, *module.weight.shape[1:]) for layer, module in layers.items()}
        if name == "odd":
            del shapes["linear"]
        made[name] = Adapter(
            name,
            {"net": {
                layer: (torch.randn(shape) * 0.1, torch.randn(rank, layers[layer].weight.shape[0]) * 0.1)
                for layer, shape in shapes.items()
            }},
            0,
        )  # fmt: skip
    return made


def hooked(net: nn.Module, adapters: dict[str, Adapter]) -> Mixer:
    mixer = Mixer("net", net)
    for adapter in adapters.values():
        mixer.attach(adapter)
    return mixer


def expected(net: Net, row: Combination, adapters: dict[str, Adapter], value: torch.Tensor) -> torch.Tensor:
    """A row by itself, its weights changed."""
    changed = {}
    for name, weight in net.named_parameters():
        changed[name] = weight.detach().clone()
        for adapter, scale in row:
            down, up = adapters[adapter].parts["net"].get(name.removesuffix(".weight"), (None, None))
            if down is not None and up is not None:
                changed[name] += scale * (up.T @ down.flatten(1)).view(weight.shape)
    result: torch.Tensor = torch.func.functional_call(net, changed, (value[None],))[0]
    return result


def drawn(
    net: Net, mixer: Mixer, rows: Sequence[Combination], adapters: dict[str, Adapter], values: torch.Tensor
) -> torch.Tensor:
    """All rows in one forward, in the order the mixer likes best, given back in their own."""
    order = mixer.arrange(rows) or list(range(len(rows)))
    mixer.use([rows[place] for place in order], adapters)
    result = torch.empty(len(rows), 5)
    result[order] = net(values[order])
    mixer.use((), {})
    return result


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.inference_mode()
def test_every_row_gets_its_own_combination_also_while_rows_leave_and_join(
    adapters: dict[str, Adapter], layout: torch.memory_format
) -> None:
    net: Net = Net().to(memory_format=layout)  # type: ignore[call-overload]
    plain = Net()
    plain.load_state_dict(net.state_dict())
    mixer = hooked(net, adapters)
    values = torch.randn(8, 3, 8, 8).to(memory_format=layout)
    batches: list[list[Combination]] = [
        ROWS,
        ROWS[1:],
        [*ROWS[1:], (("plain", 1.0),)],
        ROWS[:2],
        [()],
        [*ROWS, ROWS[3], ()],
    ]
    for rows in batches:
        got = drawn(net, mixer, rows, adapters, values[: len(rows)])
        for place, row in enumerate(rows):
            alone = expected(plain, row, adapters, values[place])
            assert functional.mse_loss(got[place], alone).sqrt() / alone.abs().max() < 1e-5
            bare = plain(values[place : place + 1])[0]
            assert not row or (alone - bare).abs().max() / alone.abs().max() > 1e-3


@torch.inference_mode()
def test_only_the_row_that_changed_is_written(adapters: dict[str, Adapter]) -> None:
    net = Net()
    mixer = hooked(net, adapters)
    values = torch.randn(8, 3, 8, 8)
    weights = [weight for name, weight in net.named_parameters() if name.endswith("weight")]
    per_rank = sum(4 * (weight[0].numel() + weight.shape[0]) for weight in weights)
    drawn(net, mixer, ROWS, adapters, values[:6])
    before = mixer.written
    after = [*ROWS[:2], *ROWS[3:], (("plain", 1.25),)]
    drawn(net, mixer, after, adapters, values[:6])
    assert mixer.written - before == 16 * per_rank
    drawn(net, mixer, after, adapters, values[:6])
    drawn(net, mixer, after[::-1], adapters, values[:6])
    assert mixer.written - before == 16 * per_rank


@torch.inference_mode()
def test_a_row_keeps_an_adapter_that_is_unloaded_and_a_new_one_of_that_name_is_another(
    adapters: dict[str, Adapter],
) -> None:
    net = Net()
    mixer = hooked(net, adapters)
    values = torch.randn(2, 3, 8, 8)
    rows: list[Combination] = [(("thin", 1.0),), (("plain", 1.0),)]
    first = drawn(net, mixer, rows, adapters, values)
    mixer.forget(adapters["thin"])
    left = {name: adapter for name, adapter in adapters.items() if name != "thin"}
    assert torch.equal(drawn(net, mixer, rows, left, values), first)
    mixer.forget(adapters["thin"])
    other = {**left, "thin": Adapter("thin", adapters["odd"].parts, 0)}
    assert not torch.allclose(drawn(net, mixer, rows, other, values)[0], first[0], rtol=1e-3)
