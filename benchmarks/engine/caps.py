"""P1b: what learning the cap costs where batching does not pay. Virtual time: no tick is really run.

The seconds of a tick are those of Qwen-Image at 1024² on an H200, compiled, with classifier-free guidance: 0.243, 0.474
and 0.711 s with 1, 2 and 3 samples, and on that line beyond (sglang, pull request 22183). There batching draws hardly
more pictures a second, and a naive cap of eight makes the mean latency 1.36 times as long.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from streamapp.engine import Engine, Job

TABLE = (0.243, 0.474, 0.711)
STEPS = 30
#: Share of what one sample at a time could draw.
LOAD = 0.7
JOBS = 300
BURST = 64
ROUNDS = 25
FLOOR, GOAL = 1.05, 1.01


def tick_seconds(rows: int) -> float:
    """Seconds of a tick with this many rows; a guided sample has two."""
    samples = -(-rows // 2)
    if samples <= len(TABLE):
        return TABLE[samples - 1]
    return TABLE[-1] + (samples - len(TABLE)) * (TABLE[-1] - TABLE[-2])


def poisson(seed: int) -> list[float]:
    """Arrivals in seconds."""
    chance, now, times = random.Random(seed), 0.0, []
    for _ in range(JOBS):
        now += chance.expovariate(LOAD / (STEPS * TABLE[0]))
        times.append(now)
    return times


def mean_latency(arrivals: Sequence[float], cap: int | None) -> float:
    """Mean seconds from arrival to picture, of a fresh engine; ``cap`` in rows, None to learn it."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    options = {"tick_seconds": tick_seconds, "sleep": sleep}
    engine = Engine(max_batch_rows=cap, clock=lambda: now, options=options)
    engine.load("m", "nowhere", "fake")
    latencies: dict[str, float] = {}
    waiting = list(enumerate(arrivals))
    while waiting or not engine.idle:
        if engine.idle:
            now = max(now, waiting[0][1])
        while waiting and waiting[0][1] <= now:
            number, _ = waiting.pop(0)
            job = Job("m", width=1024, height=1024, num_inference_steps=STEPS, seed=number, output="rgb")
            engine.submit(job, str(number))
        for event in engine.step():
            if event.kind == "image":
                latencies[event.job_id] = now - arrivals[int(event.job_id)]
    engine.close()
    return statistics.mean(latencies.values())


def p1b(rounds: int = ROUNDS) -> dict[str, Any]:
    """Mean latency with the learned cap over that with one sample at a time; the worse of Poisson and burst."""
    legs: dict[str, Mapping[str, float]] = {}
    values = []
    traces = {"Poisson": [poisson(seed) for seed in range(rounds)], "burst": [[0.0] * BURST]}
    for name, arrivals in traces.items():
        alone = [mean_latency(each, 2) for each in arrivals]
        learned = [mean_latency(each, None) for each in arrivals]
        naive = mean_latency(arrivals[0], 16)
        ratios = [ours / theirs for ours, theirs in zip(learned, alone, strict=True)]
        values += [min(learned) / min(alone), statistics.median(learned) / statistics.median(alone)]
        legs[name] = {
            "cap_1_s": statistics.median(alone),
            "learned_s": statistics.median(learned),
            "median_ratio": statistics.median(ratios),
            "worst_ratio": max(ratios),
            "cap_8_s": naive,
        }
    return {"value": max(values), "unit": "x", "floor": FLOOR, "goal": GOAL, "rounds": rounds, "legs": legs}


if __name__ == "__main__":
    import orjson

    print(orjson.dumps(p1b(), option=orjson.OPT_INDENT_2).decode())
