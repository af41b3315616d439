"""``python -m benchmarks.scale [--only S1 …] [--out FILE]``: checkpoints of full size, in how much memory they draw.

S1 and S2: Stable Diffusion 1.5 and XL (U-Nets of 0.86 and 2.6 billion parameters), half-precision single files in the
published layout, loaded offline and drawn with in two steps at 256x256. S3: Flux at its width of 3072 with one layer of
each kind, as a single file and as a folder, bit for bit. All weights are random; the files are removed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import torch

from benchmarks.scale import files

RESULTS = Path(__file__).resolve().parents[1] / "results" / "scale.json"
#: GiB of anonymous memory at most.
LIMIT = 17.0
METRICS: Mapping[str, tuple[str, str, float, float]] = {
    "S1": ("peak anonymous memory, Stable Diffusion 1.5 in one file", "GiB", LIMIT, LIMIT),
    "S2": ("peak anonymous memory, Stable Diffusion XL in one file", "GiB", LIMIT, LIMIT),
    "S3": ("tensors of Flux at width 3072 that differ between file and folder", "tensors", 0.0, 0.0),
}
FAMILIES = {"S1": "sd15", "S2": "sdxl"}
#: Bytes that loading takes beside the weights, about: interpreter, libraries, activations.
BESIDE = 3 * 1024**3


def checkpoint(metric: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Write one, load it and draw in a process of its own."""
    family, file = FAMILIES[metric], folder / f"{metric}.safetensors"
    shapes = files.stable_diffusion(family)
    began = time.monotonic()
    size = files.write(shapes, file)
    wrote = time.monotonic() - began
    need = size // 2 * getattr(torch, dtype).itemsize + BESIDE
    if (free := available()) < need:
        raise SystemExit(f"{metric} needs {need / 1024**3:.0f} GiB of memory, {free / 1024**3:.0f} are available")
    command = [sys.executable, "-m", "benchmarks.scale.draw", str(file), family, dtype]
    facts = orjson.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
    file.unlink()
    return {"value": facts.pop("peak_gib"), "file_gb": size / 1e9, "write_s": wrote, "dtype": dtype, **facts}


def flux(folder: Path) -> dict[str, Any]:
    """Compare the transformer of a file with that of a folder, every tensor."""
    from diffusers import FluxTransformer2DModel

    from streamapp.engine.flow_file import read_transformer

    layers = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    made = files.flux_transformer(layers)
    parameters = sum(tensor.numel() for tensor in made.state_dict().values())
    files.write_flux(made, folder / "flux.safetensors")
    made.save_pretrained(folder / "transformer", safe_serialization=True)
    del made
    kind: Any = FluxTransformer2DModel
    theirs = kind.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16, local_files_only=True)
    began = time.monotonic()
    ours = read_transformer(folder / "flux.safetensors", "flux", torch.bfloat16)
    seconds = time.monotonic() - began
    one, other = ours.state_dict(), theirs.state_dict()
    differ = [name for name in other if name not in one or not torch.equal(one[name], other[name])]
    differ += [name for name in one if name not in other]
    return {"value": float(len(differ)), "tensors": len(other), "parameters": parameters, "load_s": seconds}


def available() -> int:
    """Bytes of memory that can be had without swapping."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def figure(metric: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """As it is written."""
    title, unit, floor, goal = METRICS[metric]
    value = round(facts["value"], 2)
    reached = "goal" if value <= goal else "floor" if value <= floor else "missed"
    rest = {key: round(fact, 2) if isinstance(fact, float) else fact for key, fact in facts.items() if key != "value"}
    return {"title": title, "value": value, "unit": unit, "floor": floor, "goal": goal, "reached": reached,
            "rounds": 1, "facts": rest}  # fmt: skip


def main() -> None:
    """Run, print, write the figures; those that were not run stay."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of what is drawn with")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    figures: dict[str, Any] = orjson.loads(given.out.read_bytes())["figures"] if given.out.exists() else {}
    for metric in given.only:
        with tempfile.TemporaryDirectory(prefix="streamapp-scale-", ignore_cleanup_errors=True) as name:
            if shutil.disk_usage(name).free < 16 * 1024**3:
                raise SystemExit(f"{name} has less than 16 GiB left")
            found = flux(Path(name)) if metric == "S3" else checkpoint(metric, Path(name), given.dtype)
        figures[metric] = figure(metric, found)
        print(f"{metric} {figures[metric]['value']} {figures[metric]['unit']} ({figures[metric]['reached']}): "
              f"{figures[metric]['title']}; {figures[metric]['facts']}", flush=True)  # fmt: skip
    about = {"python": platform.python_version(), "cores": os.cpu_count(), "torch": version("torch"),
             "diffusers": version("diffusers")}  # fmt: skip
    given.out.write_bytes(orjson.dumps({"about": about, "figures": figures}, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    main()
