"""P10: a few-step model whose pictures are decoded beside the denoising, beside what overlapping could give at best.

The best is max(ΣD, ΣV) and the first batch's denoising, which nothing overlaps with (the last batch's decoding where
that is longer): D and V are the seconds of a batch's ticks and of its decodes. Two models: the small U-Net with a VAE
whose decoding takes about as long, which needs two free cores, and a family that sleeps for both, which needs none.
The value is the sleeping one's unless both cores were free.
"""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.engine.figures import Figure
from benchmarks.engine.models import SIDE
from benchmarks.engine.ticks import CAP
from streamapp.engine import Engine, Job

BATCHES, STEPS = 16, 4
#: Seconds of a sleeping tick and of a batch's sleeping decodes: an H100 denoises SDXL-LCM in 103 ms and decodes in 127.
TICK_S, DECODE_S = 0.026, 0.127
#: Samples of a sleeping batch.
SLEEPERS = 2
#: Widths of a VAE whose decode takes about what a row's share of four ticks does.
VAE = (16, 32, 32, 64)
#: Work of one thread alone over that of each of two at once, from which on two cores count as free.
FREE = 0.85


class Pair:
    """The same model with decodes beside its ticks and between them."""

    def __init__(self, model: Path | str, family: str, size: int, options: dict[str, Any] | None = None) -> None:
        self._size = size
        self._engines = [Engine(max_batch_rows=size, decode_queue=queue, options=options) for queue in (32, 0)]
        for engine in self._engines:
            engine.load("m", model, family)

    def measured(self, rounds: int) -> tuple[list[float], dict[str, float]]:
        """Wall over the best by round, and the medians of what it is made of, in seconds."""
        found = []
        for _ in range(rounds):
            wall, _, _ = self._drawn(self._engines[0])
            # What each part takes while nothing else wants its core.
            between, denoise, decode = self._drawn(self._engines[1])
            found.append((wall, between, denoise, decode))
        middle = [statistics.median(each) for each in zip(*found, strict=True)]
        names = ("overlapped_s", "in_turn_s", "denoising_s", "decoding_s")
        return [each[0] / best(*each[2:]) for each in found], dict(zip(names, middle, strict=True))

    def close(self) -> None:
        """Free both."""
        for engine in self._engines:
            engine.close()

    def _drawn(self, engine: Engine) -> tuple[float, float, float]:
        """Seconds of a trace of full batches: all of it, the sum of its ticks, the sum of its decodes."""
        given: Any = {"width": SIDE, "height": SIDE, "num_inference_steps": STEPS, "guidance_scale": 1, "output": "rgb"}
        for number in range(BATCHES * self._size):
            engine.submit(Job("m", "a", seed=number, **given))
        before, began = engine.stats()["ticks"][-1:], time.perf_counter()
        pictures = [event.value for event in engine.run() if event.kind == "image"]
        wall = time.perf_counter() - began
        ticks = engine.stats()["ticks"][-BATCHES * STEPS :]
        if (
            len(pictures) != BATCHES * self._size
            or ticks[:1] == before
            or {t["samples"] for t in ticks} != {self._size}
        ):
            raise RuntimeError(f"the trace was not drawn in {BATCHES} full batches")
        decodes = sum(picture.info["seconds"]["decode"] for picture in pictures)
        return wall, sum(tick["wall_s"] for tick in ticks), decodes


def best(denoise: float, decode: float) -> float:
    """Seconds of the trace if nothing but the longer of both were in the way."""
    return max(denoise, decode) + min(denoise, decode) / BATCHES


def computing(folder: Path) -> Pair:
    """The small U-Net with a VAE that is worth decoding with."""
    torch.manual_seed(0)
    vae: Any = diffusers.AutoencoderKL
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae(block_out_channels=VAE, layers_per_block=1, norm_num_groups=8, **blocks).save_pretrained(folder / "vae")
    return Pair(folder, "sd15", CAP)


def free_cores() -> float:
    """Seconds of a thread's work alone over the seconds of two such threads at once: 1 where two cores are free."""
    value = torch.randn(512, 512)

    def work() -> None:
        for _ in range(60):
            torch.mm(value, value)

    def taken(count: int) -> float:
        threads = [threading.Thread(target=work) for _ in range(count)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    taken(2)
    return min(taken(1) for _ in range(3)) / min(taken(2) for _ in range(3))


def overlapped(folder: Path, rounds: int) -> Figure:
    """P10; the legs are seconds."""
    free = free_cores() if (os.cpu_count() or 1) > 1 else 0.0
    options = {"tick_s": TICK_S, "decode_s": DECODE_S / SLEEPERS}
    values: list[float] = []
    facts: dict[str, float] = {}
    legs: dict[str, dict[str, float]] = {}
    whole = shutil.copytree(folder, folder / "few steps", ignore=shutil.ignore_patterns("flux", "few steps"))
    for name, pair in (("sleeping", Pair("nowhere", "fake", SLEEPERS, options)), ("U-Net", computing(whole))):
        ratios, legs[name] = pair.measured(rounds)
        pair.close()
        if name == "sleeping" or free >= FREE:
            values += [min(ratios), statistics.median(ratios)]
        facts[f"{name} (x)"] = round(statistics.median(ratios), 3)
    which = (
        "the worse of a sleeping family and a U-Net" if free >= FREE else "a sleeping family: two cores were not free"
    )
    told = {"what counts": which, "batches": BATCHES, "share of a second core that was free": round(free, 2), **facts}
    return Figure("P10", values, rounds, legs, told)
