"""The figures of a run as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.chaos.faults import Injector
from tests.chaos.load import Load
from tests.chaos.verdict import Verdict


def figures(
    seed: int, load: Load, injector: Injector, verdict: Verdict, redelivered: int, last: float
) -> dict[str, Any]:
    """Everything that a run says; ``last`` is the time from the last fault to the last end, in seconds."""
    kills = injector.done["worker"] + injector.done["engine"] + injector.done["stall"]
    # Attempts beyond the first, and what an engine had begun when it died with several in it (no attempt counts).
    repeats = verdict.repeats + verdict.interrupted
    return {
        "seed": seed,
        "tasks": len(load.accepted),
        "faults": dict(injector.done),
        "ends": dict(verdict.ends),
        "pictures": verdict.pictures,
        "submits_repeated": load.repeated,
        "redeliveries": redelivered,
        "executions_repeated": repeats,
        "executions_repeated_per_kill": round(repeats / kills, 2) if kills else 0.0,
        "results_dropped_by_fencing": verdict.lost,
        "longest_stall_s": round(verdict.longest_stall, 1),
        "last_end_after_last_fault_s": round(last, 1),
        "violations": verdict.violations,
    }


def table(facts: Mapping[str, Any]) -> str:
    """For people."""
    lines = []
    for name, value in facts.items():
        if name == "violations":
            continue
        shown = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name.replace('_', ' '):<34} {shown}")
    lines += [f"{'VIOLATION':<34} {violation}" for violation in facts["violations"]]
    return "\n".join(lines)
