"""``python -m benchmarks.gpu [--device cuda:0] [--quick] [--tiny] [--only sd15 …] [--out FILE]``: what needs a device.

Writes Stable Diffusion 1.5 and XL with random weights at their true widths (about 9 GB below ``--folder``), compares
pictures with diffusers' pipelines, measures the engine, moves weights from RAM and runs out of memory. Without a CUDA
device it says so. ``--device cpu --tiny`` runs the same code on small models: it shows that it runs, not how fast.
Ends with 1 where something that must hold does not.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
import transformers

from benchmarks.gpu import correct, speed, weights
from benchmarks.gpu.bench import Bench, Result

FAMILIES = ("sd15", "sdxl")
SIDES, TINY_SIDES = (512, 1024), (64, 128)


def main() -> int:
    """Run what was asked for and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="small models and pictures")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--folder", type=Path, help="for the weights; default: a temporary one")
    parser.add_argument("--out", type=Path, help="write the results as JSON, too")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was checked (--device cpu --tiny shows that the checks run)")
        return 0
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="streamapp-gpu-", dir=given.folder, ignore_cleanup_errors=True) as name:
        for family in given.only:
            results += list(checked(family, Path(name), given))
    if given.out:
        given.out.write_text(json.dumps(report(results, given.device), indent=2) + "\n")
    failed = [result.what for result in results if result.must and not result.passed]
    print(f"{len(results)} results; " + (f"FAILED: {'; '.join(failed)}" if failed else "all that must hold does"))
    return 1 if failed else 0


def checked(family: str, root: Path, given: Any) -> Iterator[Result]:
    """All results of one family, printed as they come."""
    folder, began = root / family, time.perf_counter()
    dtype = torch.float16 if given.device.startswith("cuda") else torch.float32
    weights.write(folder, family, given.tiny, given.device, dtype)
    weights.write_other(folder, root / f"{family} other", family, given.tiny, given.device, dtype)
    print(f"{family}: weights written in {time.perf_counter() - began:.0f} s", flush=True)
    sides = TINY_SIDES if given.tiny else SIDES
    for side in sides:
        bench = Bench(family, folder, given.device, side, given.quick)
        for check in plan(bench, root, last=side == sides[-1]):
            began = time.perf_counter()
            found = check()
            for result in found if isinstance(found, list) else [found]:
                print(line(result, time.perf_counter() - began), flush=True)
                yield result


def plan(bench: Bench, root: Path, *, last: bool) -> list[Callable[[], Any]]:
    """What is checked at one size; what does not depend on the size only at the last one."""
    at_size: list[Callable[[], Any]] = [
        lambda: correct.equality(bench),
        lambda: speed.ticks(bench),
        lambda: speed.alone(bench),
        lambda: speed.parking(bench),
        lambda: speed.adapters(bench, root / f"{bench.family} loras"),
        lambda: speed.overlap(bench),
        lambda: correct.short_memory(bench),
    ]
    once: list[Callable[[], Any]] = [
        lambda: speed.admission(bench),
        lambda: correct.moved(bench, root / f"{bench.family} other"),
    ]
    return [*at_size, *once] if last else at_size


def line(result: Result, seconds: float) -> str:
    """For people."""
    floor = "" if result.floor is None else f" ({'at least' if result.more else 'at most'} {result.floor:g})"
    verdict = "" if result.passed else " FAILED" if result.must else " missed"
    facts = "".join(f"\n    {name}: {value}" for name, value in result.facts.items())
    return f"{result.id:<9} {result.what}: {result.value:.4g}{floor}{verdict}  [{seconds:.0f} s]{facts}"


def report(results: list[Result], device: str) -> dict[str, Any]:
    """What is written."""
    cuda = device.startswith("cuda")
    libraries = {each.__name__: each.__version__ for each in (torch, diffusers, transformers, peft)}
    about = {"device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu", **libraries}
    told = [
        {"id": r.id, "what": r.what, "value": r.value, "floor": r.floor, "passed": r.passed, **r.facts} for r in results
    ]
    return {"about": about, "results": told}


if __name__ == "__main__":
    sys.exit(main())
