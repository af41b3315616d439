"""What the benchmarks write down; how fast anything is, is not asserted."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from benchmarks.pipeline.client import quantile
from benchmarks.pipeline.depth import steps
from benchmarks.pipeline.figures import METRICS, RESULTS, Figure, table, write


def test_a_figure_is_the_median_of_its_rounds() -> None:
    figure = Figure("P12a", [1.0, 9.0, 2.5], {"ours (tasks/s)": 3})
    assert figure.value == 2.5
    assert figure.as_dict()["reached"] == "goal"
    assert "2.500" in table([figure])
    assert "ours (tasks/s): 3" in table([figure])


@pytest.mark.parametrize(
    ("name", "value", "reached"),
    [
        ("P12a", 2.0, "goal"), ("P12a", 1.0, "floor"), ("P12a", 0.9, "missed"),
        ("P12b", 0.5, "goal"), ("P12b", 1.0, "floor"), ("P12b", 1.1, "missed"),
        ("P12e", 0.999, "goal"), ("P12e", 0.99, "floor"), ("P12e", 0.98, "missed"),
    ],
)  # fmt: skip
def test_marks_are_met_in_the_metrics_direction(name: str, value: float, reached: str) -> None:
    assert METRICS[name].judged(value) == reached


def test_a_part_of_a_run_keeps_the_figures_of_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "results" / "pipeline.json"
    write([Figure("P12a", [1.0]), Figure("P12b", [1.0])], path)
    write([Figure("P12b", [2.0])], path)
    written = orjson.loads(path.read_bytes())
    assert {name: metric["value"] for name, metric in written["metrics"].items()} == {"P12a": 1.0, "P12b": 2.0}
    assert written["machine"]["cores"] >= 1


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(number) for number in range(100)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.0, 50.0, 99.0, 99.0]


def test_the_scheduling_part_measures_both_sizes() -> None:
    measured = steps(2_000)
    assert set(measured) == {"intake", "step"}
    assert all(value > 0 for value in measured.values())


def test_the_kept_run_has_every_metric() -> None:
    kept = orjson.loads(RESULTS.read_bytes())["metrics"]
    assert set(kept) == set(METRICS)
