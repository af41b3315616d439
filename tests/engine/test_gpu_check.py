"""The checks that need a CUDA device, on small models and a CPU: what is tested is that they run and notice."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.gpu
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correct, speed, weights
from benchmarks.gpu.bench import Bench, Result
from streamapp.engine.pictures import results as pictures

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ALLOWED = {"torch", "diffusers", "transformers", "peft", "safetensors", "streamapp.engine", "benchmarks.gpu"}


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Both families, tiny."""
    root = tmp_path_factory.mktemp("gpu")
    for family in ("sd15", "sdxl"):
        weights.write(root / family, family, True, "cpu", torch.float32)
    weights.write_other(root / "sd15", root / "other", "sd15", True, "cpu", torch.float32)
    return {family: Bench(family, root / family, "cpu", 64, True) for family in ("sd15", "sdxl")}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and adapters."""
    monkeypatch.setattr(correct, "STEPS", 2)
    monkeypatch.setattr(speed, "STEPS", 2)
    monkeypatch.setattr(speed, "ROWS", 4)
    monkeypatch.setattr(speed, "COMBINATIONS", 8)
    monkeypatch.setattr(speed, "RESIDENT", 8)
    monkeypatch.setattr(Bench, "rounds", lambda *_: 2)


def test_it_imports_the_engine_and_its_libraries_only() -> None:
    """It must run where nothing of the service is installed."""
    named = set()
    for file in Path(benchmarks.gpu.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named.add(str(node.module))
    others = {name for name in named if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in others if not any(name == a or name.startswith(f"{a}.") for a in ALLOWED)} == set()


def test_without_a_device_it_says_so_and_ends_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI has none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert command.main() == 0
    assert "no CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_equality_holds_and_a_difference_is_noticed(
    benches: dict[str, Bench], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousandth more would be too much."""
    result = correct.equality(benches[family])
    assert (result.passed, result.must) == (True, True), result

    def changed(*given: Any) -> list[Any]:
        return [found * 1.001 for found in pictures(*given)]

    monkeypatch.setattr("streamapp.engine.unet.results", changed)
    assert not correct.equality(benches[family]).passed


def test_no_sample_is_lost_where_memory_is_short(benches: dict[str, Bench]) -> None:
    """The batch was halved, and all were drawn."""
    result = correct.short_memory(benches["sd15"])
    assert (result.passed, result.value) == (True, 0)
    assert 0 < result.facts["rows of the largest tick"] < 16


def test_weights_are_moved_from_ram(benches: dict[str, Bench]) -> None:
    """And not read from the disk again."""
    bench = benches["sd15"]
    result = correct.moved(bench, bench.folder.parent / "other")
    assert result.value > 0, result
    assert result.facts["MB"] > 0


def test_every_figure_is_taken(benches: dict[str, Bench], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each under its id, with a line for people and one for programs."""
    bench = benches["sd15"]
    found: list[Result] = [
        *speed.ticks(bench),
        speed.alone(bench),
        speed.parking(bench),
        *speed.adapters(bench, tmp_path / "loras"),
        speed.overlap(bench),
    ]
    assert [each.id for each in found] == ["P1", "P11b", "P11", "P3", "P4a", "P4b", "P5", "P10"]
    assert all(each.value > 0 for each in found)
    assert all(command.line(each, 1.0).startswith(each.id) for each in found)
    told = command.report(found, "cpu")
    assert [each["id"] for each in told["results"]] == [each.id for each in found]
    missed = Result("P3", "too slow", 2.0, 1.0)
    assert "missed" in command.line(missed, 0.0)
    assert "FAILED" in command.line(Result("equality", "wrong", 2.0, 1.0, must=True), 0.0)
