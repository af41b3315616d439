"""P2: how long a submit waits for its first denoise, through the process host, while a batch runs and a row is free."""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path

from benchmarks.engine import models
from benchmarks.engine.figures import Figure
from streamapp.engine import EngineProcess, Job

ROWS = 8
#: Samples that run all the time; with what is admitted they stay below the cap.
BACKGROUND = 4


def job(prompt: str, steps: int, seed: int) -> Job:
    """A sample of one row."""
    return Job(
        "m", prompt, width=models.SIDE, height=models.SIDE, num_inference_steps=steps, guidance_scale=1.0, seed=seed,
        sampler="Euler", output="latent",
    )  # fmt: skip


class Watch:
    """Notes when the events of each tick arrived, and when each job's first progress did."""

    def __init__(self, host: EngineProcess) -> None:
        self._host = host
        self.ticks: list[float] = []
        self.first: dict[str, float] = {}
        self.ended: set[str] = set()

    def look(self, seconds: float) -> None:
        """Take what arrives for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            events = self._host.step(left)
            now = time.monotonic()
            if any(event.kind == "progress" for event in events):
                self.ticks.append(now)
            for event in events:
                if event.kind == "progress":
                    self.first.setdefault(event.job_id, now)
                elif event.kind in ("image", "failed", "cancelled"):
                    self.ended.add(event.job_id)


def delay(folder: Path, submits: int) -> Figure:
    """P2. From a submit to the events of the tick before its first one, and what lies between the two ticks.

    Three steps a sample keep a row free. Between ticks the child takes the encoding from the cache and draws noise.
    That time is the median from events to events of joined ticks without the median of the ticks alone, as the child
    says.
    """
    chance = random.Random(4)
    host = EngineProcess(max_batch_rows=ROWS, threads=1)
    host.start()
    try:
        host.load("m", folder)
        watch = Watch(host)
        sent: dict[str, float] = {}
        running = 0
        for number in range(submits):
            alive = [f"b{index}" for index in range(running) if f"b{index}" not in watch.ended]
            for _ in range(BACKGROUND - len(alive)):
                host.submit(job("apple", 150, running), f"b{running}")
                running += 1
            name = f"s{number}"
            watch.look(0.02 + chance.random() * 0.1)
            sent[name] = time.monotonic()
            host.submit(job("pear", 3, number), name)
        watch.look(0.5)
        alone = [tick["wall_s"] for tick in host.stats()["ticks"] if tick["samples"] == BACKGROUND + 1]
    finally:
        host.close()
    return _figure(watch, sent, statistics.median(alone))


def _figure(watch: Watch, sent: dict[str, float], alone: float) -> Figure:
    waits, ends, lengths, firsts = [], [], [], []
    for name, at in list(sent.items())[10:]:
        if name not in watch.first:
            continue
        end = watch.first[name]
        before = max((tick for tick in watch.ticks if tick < end), default=at)
        met = next((place for place, tick in enumerate(watch.ticks) if tick > at), 0)
        if met == 0:
            continue
        length = watch.ticks[met] - watch.ticks[met - 1]
        lengths.append(length)
        waits.append(before - at)
        firsts.append(end - before)
        ends.append((end - at) / length)
    between = max(0.0, statistics.median(firsts) - alone)
    delays = sorted((wait + between) / length for wait, length in zip(waits, lengths, strict=True))
    ends.sort()
    facts = {
        "submits": len(delays),
        "median (ticks)": round(delays[len(delays) // 2], 3),
        "to the end of the first tick, p99 (ticks)": round(_p99(ends), 3),
        "tick, median (ms)": round(statistics.median(lengths) * 1e3, 2),
        "between ticks at a join (ms)": round(between * 1e3, 2),
    }
    return Figure("P2", [_p99(delays)], len(delays), {}, facts)


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
