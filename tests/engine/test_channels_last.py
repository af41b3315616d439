"""Tensors with their channels last: another layout, the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from streamapp.engine import Engine, LoRA
from tests.engine.test_exact import POCKET, draw, job
from tests.models.make_lora import make_lora


def test_pictures_are_the_same_with_and_without_loras(tmp_path: Path) -> None:
    """Layers of both kinds, mixed combinations in one batch; the weights do lie differently."""
    files = {name: make_lora(tmp_path / f"{name}.safetensors", "kohya", seed=seed) for seed, name in enumerate("ab")}
    jobs = [job(seed=number, loras=[LoRA(name, 0.7) for name in names]) for number, names in enumerate(("", "a", "ab"))]
    drawn: list[dict[Any, torch.Tensor]] = []
    for options in ({}, {"channels_last": True}):
        engine = Engine(max_batch_rows=8, options=options)
        engine.load("m", POCKET, "sd15")
        unet: Any = getattr(engine._checkpoints["m"], "_unet")  # noqa: B009
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) == bool(options)
        for name, path in files.items():
            engine.load_lora(name, path, "m")
        drawn.append(draw(engine, jobs, stagger=1))
        assert engine.stats()["attention"]
        engine.close()
    for key, plain in drawn[0].items():
        assert (drawn[1][key] - plain).abs().max() / plain.abs().max() <= 1e-5
