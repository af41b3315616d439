"""Reading a file straight into modules: every byte in its place, cold or warm, and damaged files by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from streamapp.engine import components, weights_file
from streamapp.engine.architectures import Architecture, Text
from streamapp.engine.errors import EngineError
from streamapp.engine.single_file import read_single_file
from streamapp.engine.weights_file import WeightsFile
from streamapp.models.catalogue import HERE
from streamapp.training.ldm_file import write_ldm

POCKET = HERE / "pocket"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    tensors = {
        "large": torch.randn(300, 1000),
        "half": torch.randn(7, 3).half(),
        "brain": torch.randn(5).bfloat16(),
        "eighth": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "whole": torch.arange(11),
        "one": torch.tensor(3.5),
        "none": torch.zeros(0),
        "flags": torch.tensor([True, False, True]),
    }
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("cached", [True, False])
def test_every_tensor_arrives_bit_for_bit(file: Path, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsFile, "_cached", lambda *_: cached)
    monkeypatch.setattr(weights_file, "PIECE", 4096)
    expected = load_file(file)
    with WeightsFile(file) as opened:
        found = {name: torch.empty_like(tensor) for name, tensor in opened.tensors.items()}
        opened.pour((tensor, opened.tensors[name]) for name, tensor in found.items())
        assert opened.direct == sum(tensor.nbytes for tensor in expected.values())
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same(found[name], expected[name])] == []


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = [tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def test_what_is_cast_or_turned_comes_through_the_mapping(file: Path) -> None:
    with WeightsFile(file) as opened:
        large, half = opened.tensors["large"], opened.tensors["half"]
        turned, cast = torch.empty(1000, 300), torch.empty(7, 3)
        opened.pour([(turned, large.T), (cast, half)])
        assert (torch.equal(turned, large.T), torch.equal(cast, half.float()), opened.direct) == (True, True, 0)


def test_short_reads_go_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: real(file, [buffers[0][:1000]], offset))
    monkeypatch.setattr(WeightsFile, "_cached", lambda *_: False)
    with WeightsFile(file) as opened:
        target = torch.empty(300, 1000)
        opened.pour([(target, opened.tensors["large"])])
    assert torch.equal(target, load_file(file)["large"])


def test_damaged_files_are_refused_by_name(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    claims = orjson.dumps({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}})
    for name, damaged in {
        "short": raw[:-5],
        "empty": b"",
        "text": b"<html>not a file</html>",
        "bomb": (4 << 30).to_bytes(8, "little") + raw[8:],
        "header": raw[:8] + b"x" * length + raw[8 + length :],
        "type": len(claims).to_bytes(8, "little") + claims + b"\0",
    }.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(EngineError, match=rf"{name}\.safetensors") as refused:
            WeightsFile(path)
        assert refused.value.code == "load_failed"


def test_reading_into_the_memory_of_another_checkpoint_writes_all_of_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("into")
    first = write_ldm(POCKET, folder / "first.safetensors")
    state = load_file(first)
    second = folder / "second.safetensors"
    save_file({name: tensor + 0.01 if tensor.is_floating_point() else tensor for name, tensor in state.items()}, second)
    old = read_single_file(first, torch.float32, architecture=pocket(), tokenizer=lambda _: None)
    places = {name: tensor.data_ptr() for name, tensor in old.unet.state_dict().items()}
    for _, module in components.modules(old):
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    again = read_single_file(second, torch.float32, architecture=pocket(), tokenizer=lambda _: None, into=old)
    fresh = read_single_file(second, torch.float32, architecture=pocket(), tokenizer=lambda _: None)
    assert {name: tensor.data_ptr() for name, tensor in again.unet.state_dict().items()} == places
    for (_, ours), (_, theirs) in zip(components.modules(again), components.modules(fresh), strict=True):
        assert components.same(ours, theirs)


def pocket() -> Architecture:
    """The architecture of the model that ships."""

    def config(part: str) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((POCKET / part / "config.json").read_bytes())
        return {key: value for key, value in found.items() if not key.startswith("_")}

    return Architecture("pocket", config("unet"), config("vae"), (Text(config("text_encoder")),), {})
