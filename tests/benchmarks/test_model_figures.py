"""What the benchmark of loading writes down; how fast anything is, is not asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.engine.figures import Figure
from benchmarks.models.download import download
from benchmarks.models.figures import MODELS, RESULTS


@pytest.mark.parametrize(
    ("name", "value", "reached"),
    [
        ("P6a", 0.95, "goal"), ("P6a", 0.85, "floor"), ("P6a", 0.84, "missed"),
        ("P6d", 0.2, "goal"), ("P6d", 0.3, "floor"), ("P6d", 0.31, "missed"),
        ("P6c", 0.1, "goal"),
    ],
)  # fmt: skip
def test_marks_are_met_in_the_metrics_direction(name: str, value: float, reached: str) -> None:
    assert MODELS[name].judged(value) == reached


def test_results_lie_beside_those_of_the_engine() -> None:
    assert RESULTS.parts[-3:] == ("benchmarks", "results", "models.json")


def test_a_download_is_measured_against_curl(tmp_path: Path) -> None:
    figure: Figure = download(tmp_path, 1, 1 << 20)
    assert set(figure.legs) == {"ours", "curl"}
    assert figure.as_dict()["rounds"] == 1
