"""``python -m benchmarks.pipeline [--quick] [--only P12a …] [--out FILE]``: the service against the plain recipe.

Legs of both sides are interleaved in one run on the same servers; the figures are medians over rounds. ``--quick``
takes few and small rounds: it shows that the benchmark runs, not how fast anything is.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.pipeline import depth, held_up, whole_path
from benchmarks.pipeline.figures import METRICS, RESULTS, Figure, table, write
from benchmarks.pipeline.sides import Servers, servers_at


def plan(folder: Path, quick: bool) -> dict[str, Callable[[Servers], Awaitable[Figure]]]:
    """What measures each metric, with its rounds and sizes."""
    few = quick
    return {
        "P12a": lambda servers: whole_path.throughput(servers, 1 if few else 5, 100 if few else 1_500),
        "P12b": lambda servers: whole_path.submits(servers, 1 if few else 5, 400 if few else 2_000),
        "P12c": lambda servers: whole_path.lone(servers, 1 if few else 5, 5 if few else 20),
        "P12e": lambda servers: held_up.connections(servers, 1 if few else 3, 50 if few else 1_000),
        "P12d": lambda servers: held_up.stalls(servers, 1 if few else 3, 10 if few else 60),
        "P13a": lambda servers: depth.cost(servers, 1 if few else 5, 5_000 if few else 1_000_000),
        "P13b": lambda _: depth.memory(folder, 1, 3_000 if few else 1_000_000),
    }


async def run(folder: Path, only: list[str], quick: bool) -> list[Figure]:
    """Measure one after another on fresh servers."""
    figures = []
    for name, measure in plan(folder, quick).items():
        if name in only:
            print(f"{name}: {METRICS[name].title} …", flush=True)
            async with servers_at(folder / name) as servers:
                figures.append(await measure(servers))
            print(table(figures[-1:]), flush=True)
    return figures


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/pipeline.json, and nothing with --quick")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streamapp-bench-", ignore_cleanup_errors=True) as folder:
        figures = asyncio.run(run(Path(folder), given.only, given.quick))
    print()
    print(table(figures))
    out = given.out or (None if given.quick else RESULTS)
    if out is not None:
        write(figures, out)


if __name__ == "__main__":
    main()
