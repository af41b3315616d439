"""What is measured, what it must reach, and how it is written down."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

RESULTS = Path(__file__).resolve().parents[1] / "results" / "pipeline.json"


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table; ``more`` says whether more is better."""

    id: str
    title: str
    unit: str
    floor: float
    goal: float
    more: bool = False

    def judged(self, value: float) -> str:
        """``goal``, ``floor`` or ``missed``."""

        def reached(mark: float) -> bool:
            return value >= mark if self.more else value <= mark

        return "goal" if reached(self.goal) else "floor" if reached(self.floor) else "missed"


METRICS = {
    metric.id: metric
    for metric in (
        Metric("P12a", "tasks per second through the whole path / plain recipe", "x", 1.0, 2.0, more=True),
        Metric("P12b", "submit p99 with 200 concurrent clients / plain recipe", "x", 1.0, 0.5),
        Metric("P12c", "queue-to-start delay of a lone task on Kafka / plain recipe", "x", 1.5, 1.0),
        Metric("P12e", "submits answered within 100 ms at 2,000 open connections", "share", 0.99, 0.999, more=True),
        Metric("P12d", "worker event-loop stall, p99.9, while the engine computes", "ms", 50.0, 10.0),
        Metric("P13a", "cost per task at 1 M queued / at 1 k: worst of submit, intake, step", "x", 1.5, 1.2),
        Metric("P13b", "worker memory at 1 M queued / at 1 k queued", "x", 1.5, 1.1),
    )
}  # fmt: skip


@dataclass(slots=True)
class Figure:
    """A measured value with the rounds it is the median of and whatever explains it."""

    id: str
    rounds: Sequence[float]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.rounds)

    def as_dict(self) -> dict[str, Any]:
        """As it is written."""
        metric = METRICS[self.id]
        return {
            "title": metric.title,
            "value": round(self.value, 4),
            "unit": metric.unit,
            "floor": metric.floor,
            "goal": metric.goal,
            "reached": metric.judged(self.value),
            "rounds": [round(value, 4) for value in self.rounds],
            "facts": self.facts,
        }


def table(figures: Sequence[Figure]) -> str:
    """For people."""
    head = f"{'id':<6}{'value':>10}  {'unit':<6}{'floor':>8}{'goal':>8}  {'reached':<8} what"
    lines = [head, "-" * len(head)]
    for figure in figures:
        metric = METRICS[figure.id]
        lines.append(
            f"{figure.id:<6}{figure.value:>10.3f}  {metric.unit:<6}{metric.floor:>8g}{metric.goal:>8g}  "
            f"{metric.judged(figure.value):<8} {metric.title}"
        )
        lines += [f"{'':<8}{name}: {value}" for name, value in figure.facts.items()]
    return "\n".join(lines)


def write(figures: Sequence[Figure], path: Path = RESULTS) -> None:
    """Write the run; figures of metrics that it left out are kept from the one before."""
    known: dict[str, Any] = orjson.loads(path.read_bytes())["metrics"] if path.exists() else {}
    known |= {figure.id: figure.as_dict() for figure in figures}
    whole = {"machine": machine(), "metrics": dict(sorted(known.items()))}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
