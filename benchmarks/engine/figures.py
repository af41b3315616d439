"""What is measured, what it must reach, and how it is written down."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

RESULTS = Path(__file__).resolve().parents[1] / "results" / "engine.json"


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

    def worse(self, values: Sequence[float]) -> float:
        """The one furthest from the goal."""
        return min(values) if self.more else max(values)


METRICS = {
    metric.id: metric
    for metric in (
        Metric("P1a", "raw forwards of the same rows / engine wall, 64 requests, cap 8", "share", 0.88, 0.95, True),
        Metric("P1b", "mean latency with the learned cap / with cap 1, virtual clock", "x", 1.05, 1.01),
        Metric("P2", "admission delay p99 through the process host / the tick it met", "x", 2.0, 1.25),
        Metric("P3", "park and resume / one tick", "x", 0.05, 0.01),
        Metric("P4a", "mixed batch of 8 combinations / peft with one active adapter of the same rank", "x", 1.10, 1.03),
        Metric("P4b", "mixed batch's gain over B=1 with the adapter active / raw gain", "x", 0.85, 0.95, True),
        Metric("P5", "what a new combination of 5 adds between ticks, 256 resident / few resident", "x", 2.0, 1.1),
        Metric("P10", "few-step model with decode overlapped / ideal", "x", 1.25, 1.08),
        Metric("P11", "engine at B=1 / raw forwards", "x", 1.05, 1.02),
        Metric("P11b", "share of a tick that is not the forward, B=8", "share", 0.05, 0.015),
    )
}  # fmt: skip


@dataclass(slots=True)
class Figure:
    """A measured value: the worse of what the minima and the medians of its legs say.

    Attributes:
        values: the candidates, of which the worst counts.
        rounds: how many rounds were taken.
        legs: by leg, its least and its median, in the unit its name says.
        facts: whatever explains the value.
    """

    id: str
    values: Sequence[float]
    rounds: int
    legs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The worst candidate."""
        return METRICS[self.id].worse(self.values)

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
            "rounds": self.rounds,
            "legs": {name: {k: round(v, 4) for k, v in leg.items()} for name, leg in self.legs.items()},
            "facts": dict(self.facts),
        }


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, float]:
    """``over / under`` by minima and by medians."""
    return min(over) / min(under), statistics.median(over) / statistics.median(under)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """A leg's least and median, in milliseconds."""
    return {"min_ms": min(seconds) * 1e3, "median_ms": statistics.median(seconds) * 1e3}


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
        legs = (f"{name} {' / '.join(f'{v:.4g}' for v in leg.values())}" for name, leg in figure.legs.items())
        lines += [f"{'':<8}{line}" for line in legs]
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
    """What the figures were taken on and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }
