"""``python -m benchmarks.models [--quick] [--only P6a …] [--out FILE]``: what loading costs, from every tier.

Legs of a figure are interleaved in one run. ``--quick`` takes few rounds: it shows that the benchmark runs, not how
fast anything is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before torch is imported.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch

from benchmarks.engine.figures import Figure, table, write
from benchmarks.models import download, files, loading, switching
from benchmarks.models.figures import MODELS, RESULTS

CACHE = RESULTS.parents[2] / ".cache"
Measure = Callable[[], list[Figure]]


def plan(folder: Path, quick: bool) -> dict[tuple[str, ...], Measure]:
    """What measures which metrics, with its rounds."""
    paths = [files.checkpoint(folder, seed) for seed in (1, 2)]
    return {
        ("P6a", "P6b", "P6c"): lambda: loading.cold_and_warm(paths[0], 2 if quick else 20),
        ("P6d",): lambda: [switching.switch(paths, 2 if quick else 15)],
        ("P7",): lambda: [switching.hidden(folder / "drawn", paths[0], 2 if quick else 10)],
        ("P6e",): lambda: [loading.peak(paths, 1 if quick else 3)],
        ("P6f",): lambda: [download.download(folder, 1 if quick else 5, 1 << (26 if quick else 30))],
    }


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/models.json, and nothing with --quick")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: list[Figure] = []
    # Beside the repository's own files: /tmp may be memory.
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-models-", dir=CACHE, ignore_cleanup_errors=True) as name:
        for ids, measure in plan(Path(name), given.quick).items():
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
