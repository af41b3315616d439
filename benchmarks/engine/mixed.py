"""P4: rows with different combinations of LoRAs in one forward, beside peft's ways to do it, on the same weights."""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from benchmarks.engine import models
from benchmarks.engine.figures import Figure, ratios, summary
from benchmarks.engine.legs import interleaved
from streamapp.engine.adapters import Adapter, Combination
from streamapp.engine.mixing import Mixer

ROWS = 8
RANK = 16
#: A row leaves and another joins once in so many ticks.
TURNOVER = 5
#: Ranks of the adapters of a combination, 16 in all; the ragged ones go up to 320 in all.
SPLITS = ((16,), (8, 8), (8, 4, 4), (4, 4, 4, 4), (4, 4, 4, 2, 2), (12, 4), (10, 6), (8, 6, 2))
RAGGED = ((4,), (8, 4), (16, 8, 4), (32, 16, 8, 4), (128, 64, 64, 32, 32), (64,), (64, 32), (16, 4))
#: Names of the linear layers that published adapters change: attention and feed-forward.
TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "net.0.proj",
    "net.2",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "proj_mlp",
)


def targets(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that adapters change."""
    layers = model.named_modules()
    return {name: layer for name, layer in layers if name.endswith(TARGETS) and isinstance(layer, nn.Linear)}


def adapter(name: str, layers: Mapping[str, nn.Linear], rank: int) -> Adapter:
    """Random factors for all these layers."""
    factors = {
        layer: (torch.randn(rank, linear.in_features) * 0.02, torch.randn(rank, linear.out_features) * 0.02)
        for layer, linear in layers.items()
    }
    size = sum(4 * factor.numel() for pair in factors.values() for factor in pair)
    return Adapter(name, {"it": factors}, size)


@dataclass
class Mixed:
    """Eight rows with a combination each, of which one is replaced every few ticks."""

    mixer: Mixer
    adapters: dict[str, Adapter]
    rows: list[Combination]
    turnover: Iterator[int]

    def use(self) -> None:
        """What the engine does before a forward."""
        tick = next(self.turnover)
        if tick % TURNOVER == 0:
            # As in the engine: the row is gone, the ones behind it move up, the new one comes last.
            gone = self.rows.pop(tick // TURNOVER % ROWS)
            self.rows.append(tuple((name, 0.1 + tick % 97 / 100) for name, _ in gone))
        order = self.mixer.arrange(self.rows)
        self.mixer.use(self.rows if order is None else [self.rows[place] for place in order], self.adapters)


def mixed(model: nn.Module, splits: Sequence[Sequence[int]]) -> Mixed:
    """A model with our hooks and adapters for eight combinations."""
    layers = targets(model)
    made = [[adapter(f"{row}-{n}", layers, rank) for n, rank in enumerate(split)] for row, split in enumerate(splits)]
    mixer = Mixer("it", model)
    for one in (a for row in made for a in row):
        mixer.attach(one)
    rows: list[Combination] = [tuple((a.name, 0.5) for a in row) for row in made]
    return Mixed(mixer, {a.name: a for row in made for a in row}, rows, count(1))


class Peft:
    """The same model under peft, with eight adapters of rank 16."""

    def __init__(self, model: nn.Module) -> None:
        config: dict[str, Any] = {"r": RANK, "lora_alpha": RANK, "target_modules": list(targets(model))}
        self.model = copy.deepcopy(model)
        for number in range(ROWS):
            inject_adapter_in_model(LoraConfig(**config, init_lora_weights=False), self.model, f"a{number}")
        self.model.eval().requires_grad_(False)
        self.layers: list[Any] = [layer for layer in self.model.modules() if isinstance(layer, BaseTunerLayer)]

    def activate(self, name: str) -> None:
        """Switch all rows to one adapter."""
        for layer in self.layers:
            layer.set_adapter(name, inference_mode=True)

    def named(self, names: Sequence[str], forward: Callable[[], object]) -> None:
        """A forward with an adapter per row: peft's ``adapter_names``."""

        def give(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "adapter_names": list(names)}

        handles = [layer.register_forward_pre_hook(give, with_kwargs=True) for layer in self.layers]
        forward()
        for handle in handles:
            handle.remove()


def measure(model: nn.Module, inputs: Callable[[int], dict[str, Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every leg. All take the same inputs; ours, peft's and the bare model are copies of one another."""
    one, batch = inputs(1), inputs(ROWS)
    peft, ours, ragged = Peft(model), copy.deepcopy(model), copy.deepcopy(model)
    even, uneven = mixed(ours, SPLITS), mixed(ragged, RAGGED)
    names = [f"a{number}" for number in range(ROWS)]
    peft.activate("a0")
    chance = random.Random(5)

    def run(module: nn.Module, rows: Mixed) -> None:
        rows.use()
        module(**batch)

    def switching() -> None:
        peft.activate(chance.choice(names[1:]))
        peft.model(**one)
        peft.activate("a0")

    legs: dict[str, Callable[[], object]] = {
        "base B=1": lambda: model(**one),
        "base B=8": lambda: model(**batch),
        "mixed B=8": lambda: run(ours, even),
        "mixed B=8, ranks 4-320": lambda: run(ragged, uneven),
        "peft active B=1": lambda: peft.model(**one),
        "peft active B=8": lambda: peft.model(**batch),
        "peft adapter_names B=8": lambda: peft.named(names, lambda: peft.model(**batch)),
        "peft set_adapters, B=1": switching,
    }
    with torch.inference_mode():
        return interleaved(legs, rounds)


def cost(unet: nn.Module, rounds: int) -> tuple[Figure, Figure]:
    """P4a, the worse of U-Net and transformer, and P4b on the transformer."""
    taken = {
        "U-Net": measure(unet, models.unet_inputs, rounds),
        "DiT": measure(models.dit(), models.dit_inputs, rounds),
    }
    values: list[float] = []
    facts: dict[str, float] = {}
    legs: dict[str, dict[str, float]] = {}
    for name, seconds in taken.items():
        ours, stock = seconds["mixed B=8"], seconds["peft active B=8"]
        values += ratios(ours, stock)
        legs |= {f"{name}, {leg}": summary(spent) for leg, spent in seconds.items()}
        facts |= {
            f"{name}: / peft active": _worst(ours, stock),
            f"{name}: vs_base": _worst(ours, seconds["base B=8"]),
            f"{name}: ranks 4-320 / peft active": _worst(seconds["mixed B=8, ranks 4-320"], stock),
            f"{name}: peft adapter_names / peft active": _worst(seconds["peft adapter_names B=8"], stock),
        }
    dit = taken["DiT"]
    gain = [_gain(dit["peft active B=1"], dit["mixed B=8"], by) for by in (min, statistics.median)]
    raw = [_gain(dit["base B=1"], dit["base B=8"], by) for by in (min, statistics.median)]
    switched = [_gain(dit["peft set_adapters, B=1"], dit["mixed B=8"], by) for by in (min, statistics.median)]
    shares = {
        "gain over the adapter active": round(min(gain), 3),
        "raw gain": round(max(raw), 3),
        "gain over set_adapters and a forward each": round(min(switched), 3),
    }
    names = ("base B=1", "base B=8", "mixed B=8", "peft active B=1", "peft set_adapters, B=1")
    return (
        Figure("P4a", values, rounds, legs, facts),
        Figure(
            "P4b", [a / b for a, b in zip(gain, raw, strict=True)], rounds, {n: summary(dit[n]) for n in names}, shares
        ),
    )


def _gain(one: Sequence[float], batch: Sequence[float], by: Callable[[Sequence[float]], float]) -> float:
    return ROWS * by(one) / by(batch)


def _worst(over: Sequence[float], under: Sequence[float]) -> float:
    return round(max(ratios(over, under)), 4)
