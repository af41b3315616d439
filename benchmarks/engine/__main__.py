"""``python -m benchmarks.engine [--quick] [--only P1a …] [--out FILE]``: what the engine adds to its forwards.

One torch thread; legs are interleaved in random order in one process. ``--quick`` takes few rounds: it shows that the
benchmark runs, not how fast anything is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch

from benchmarks.engine import admission, caps, mixed, models, overlap, parking, resident, stock, ticks
from benchmarks.engine.figures import METRICS, RESULTS, Figure, table, write

Measure = Callable[[], list[Figure]]


def plan(folder: Path, pipeline: Any, quick: bool) -> dict[tuple[str, ...], Measure]:
    """What measures which metrics, with its rounds."""
    unet = pipeline.unet.eval().requires_grad_(False)

    def whole(rounds: int, beside: int) -> list[Figure]:
        models.flux(folder / "flux")
        figure = ticks.efficiency({ticks.UNET: folder, ticks.DIT: folder / "flux"}, rounds)
        figure.facts = {**figure.facts, **stock.images_per_second(pipeline, folder, beside)}
        return [figure]

    return {
        ("P1a",): lambda: whole(1, 1) if quick else whole(7, 3),
        ("P1b",): lambda: [learned(1 if quick else 5)],
        ("P2",): lambda: [admission.delay(folder, 40 if quick else 400)],
        ("P3",): lambda: [parking.parking(folder, 40 if quick else 400)],
        ("P4a", "P4b"): lambda: list(mixed.cost(unet, 3 if quick else 40)),
        ("P5",): lambda: [resident.activation(folder, unet, 6 if quick else 60)],
        ("P10",): lambda: [overlap.overlapped(folder, 1 if quick else 3)],
        ("P11",): lambda: [ticks.alone(folder, 3 if quick else 60)],
        ("P11b",): lambda: [ticks.share(folder, 40 if quick else 400)],
    }


def learned(rounds: int) -> Figure:
    """P1b."""
    found = caps.p1b(rounds)
    return Figure("P1b", [found["value"]], found["rounds"], found["legs"])


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/engine.json, and nothing with --quick")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="streamapp-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        pipeline = models.sd15(folder)
        for ids, measure in plan(folder, pipeline, given.quick).items():
            if set(ids) & set(given.only):
                print(f"{', '.join(ids)} …", flush=True)
                began = time.monotonic()
                figures += measure()
                print(f"  {time.monotonic() - began:.0f} s", flush=True)
    print(table(figures))
    out = given.out or (None if given.quick else RESULTS)
    if out is not None:
        write(figures, out)


if __name__ == "__main__":
    main()
