"""The files of full size that are drawn with: every published parameter, in the format that is read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.scale import files
from benchmarks.scale.__main__ import figure
from streamapp.engine.architectures import architecture_of

COUNTS = {
    "sd15": 859_520_964 + 83_653_863 + 123_060_480,
    "sdxl": 2_567_463_684 + 83_653_863 + 123_060_480 + 694_659_840,
}


@pytest.mark.parametrize("family", list(COUNTS))
def test_a_file_has_every_published_parameter(family: str) -> None:
    shapes = files.stable_diffusion(family)
    assert sum(math.prod(shape) for shape in shapes.values()) == COUNTS[family]
    assert architecture_of(shapes, "file", family).name == family


def test_tensors_are_written_one_after_the_other(tmp_path: Path) -> None:
    shapes = {"a.weight": (3, 5), "norm.weight": (7,), "norm.bias": (1,), "conv.weight": (2, 3, 3, 3)}
    path = tmp_path / "x.safetensors"
    assert files.write(shapes, path) == path.stat().st_size
    read = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == shapes
    assert {tensor.dtype for tensor in read.values()} == {torch.float16}
    assert 0.8 < read["norm.weight"].float().mean() < 1.2
    assert all(tensor.isfinite().all() and tensor.std() > 0 for tensor in (read["a.weight"], read["conv.weight"]))


def test_more_memory_than_the_limit_is_a_miss() -> None:
    assert figure("S2", {"value": 16.9, "load_s": 1.234})["reached"] == "goal"
    assert figure("S2", {"value": 17.1})["reached"] == "missed"
