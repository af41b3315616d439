"""P3: what it costs to park one sample of a running batch as bytes and to resume it, beside a tick."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.engine.figures import Figure, ratios, summary
from benchmarks.engine.ticks import CAP, COMMON_STEPS, requests
from streamapp.engine import Engine


def parking(folder: Path, rounds: int) -> Figure:
    """P3. The tick is one of the same batch; each round parks another sample."""
    engine = Engine(max_batch_rows=CAP)
    engine.load("m", folder)
    jobs = itertools.cycle(replace(job, num_inference_steps=COMMON_STEPS) for job in requests())
    names: list[str] = []
    parked: list[float] = []
    ticks: list[float] = []
    size = 0
    for number in range(rounds + 5):
        while engine.stats()["running"] + engine.stats()["waiting"] < CAP:
            names.append(engine.submit(next(jobs)))
        began = time.perf_counter()
        ended = {event.job_id for event in engine.step() if event.kind == "image"}
        ticked = time.perf_counter() - began
        names = [name for name in names if name not in ended]
        if len(names) < CAP:
            continue
        began = time.perf_counter()
        state = engine.park(names[number % CAP], 0)
        engine.resume(state)
        if number >= 5:
            parked.append(time.perf_counter() - began)
            ticks.append(ticked)
            size = len(state)
    engine.close()
    legs = {"park and resume": summary(parked), "tick": summary(ticks)}
    return Figure("P3", ratios(parked, ticks), len(parked), legs, {"bytes": size})
