"""The engine's figures at true scale; ids as in ``docs/performance.md``. A tick's forward is timed on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft

from benchmarks.gpu.bench import Bench, Result
from benchmarks.gpu.weights import write_loras
from streamapp.engine import Engine, EngineProcess, LoRA

ROWS, STEPS = 8, 20
RANK, COMBINATIONS = 16, 8
#: Adapters that are resident beside the five that are asked for.
RESIDENT = 64
BATCHES, FEW = 16, 4


def ticks(bench: Bench) -> list[Result]:
    """P1: the share of full batches' time that is the forward; P11b: of a tick, what is not."""
    engine = bench.engine(max_batch_rows=ROWS)
    rows = min(ROWS, engine.caps.rows(bench.side, bench.side))
    for seed in range(rows):
        engine.submit(bench.job(seed, 3))
    list(engine.run())
    first, count = len(engine.stats()["ticks"]), rows * (2 if bench.quick else 4)
    for seed in range(count):
        engine.submit(bench.job(seed, STEPS + seed % 5))
    spans = []
    while not engine.idle:
        bench.synchronize()
        began = time.perf_counter()
        engine.step()
        spans.append(time.perf_counter() - began)
    taken = engine.stats()["ticks"][first:]
    full = [(tick, span) for tick, span in zip(taken, spans, strict=False) if tick["rows"] == rows]
    engine.close()
    share = sum(tick["forward_s"] for tick, _ in full) / sum(span for _, span in full)
    rest = statistics.median(1 - tick["forward_s"] / tick["wall_s"] for tick, _ in full)
    facts = {"rows": rows, "ticks": len(full), "tick (ms)": _ms(statistics.median(t["wall_s"] for t, _ in full))}
    return [
        Result("P1", f"{bench.name}: forwards / the engine's time, full batches", share, 0.88, more=True, facts=facts),
        Result("P11b", f"{bench.name}: share of a tick that is not the forward", rest, 0.05),
    ]


def alone(bench: Bench) -> Result:
    """P11: one sample at a time, beside the forwards of the same ticks."""
    engine = bench.engine(max_batch_rows=2)
    shares = []
    for seed in range(bench.rounds(20)):
        first = len(engine.stats()["ticks"])
        engine.submit(bench.job(seed, STEPS))
        began = time.perf_counter()
        list(engine.run())
        wall = time.perf_counter() - began
        shares.append(wall / sum(tick["forward_s"] for tick in engine.stats()["ticks"][first:]))
    engine.close()
    return Result("P11", f"{bench.name}: engine with one row / forwards", statistics.median(shares), 1.05)


def admission(bench: Bench) -> Result:
    """P2: from a submit to the first progress through the process host, less the tick itself, in ticks."""
    host = EngineProcess(device=bench.device, dtype="auto", max_batch_rows=ROWS)
    host.load("m", bench.folder, bench.family)
    waits: list[float] = []
    moments: list[float] = []
    host.submit(bench.job(0, 150), "long 0")
    for number in range(bench.rounds(100)):
        name, sent, seen = f"probe {number}", time.perf_counter() + 0.003 * (number % 7), 0.0
        while time.perf_counter() < sent:
            pass
        host.submit(bench.job(number, 2), name)
        while not seen:
            events = host.step(1.0)
            now = time.perf_counter()
            moments += [now for event in events if event.job_id.startswith("long") and event.kind == "progress"]
            seen = now if any(event.job_id == name and event.kind == "progress" for event in events) else 0.0
            if any(event.job_id.startswith("long") and event.kind == "image" for event in events):
                host.submit(bench.job(number, 150), f"long {number}")
        waits.append(seen - sent)
    host.close()
    tick = statistics.median(b - a for a, b in pairwise(moments) if b > a)
    delays = sorted(wait / tick - 1 for wait in waits)
    return Result("P2", f"{bench.name}: admission delay p99 / a tick", delays[int(0.99 * (len(delays) - 1))], 2.0,
                  facts={"tick (ms)": _ms(tick), "median": round(statistics.median(delays), 3)})  # fmt: skip


def parking(bench: Bench) -> Result:
    """P3: park and resume one sample of a batch, beside a tick of it."""
    engine = bench.engine(max_batch_rows=ROWS)
    rows = min(ROWS, engine.caps.rows(bench.side, bench.side))
    taken = []
    for seed in range(rows):
        engine.submit(bench.job(seed, 150), str(seed))
    for number in range(bench.rounds(50)):
        engine.step()
        bench.synchronize()
        began = time.perf_counter()
        engine.resume(engine.park(str(number % rows), 0))
        taken.append(time.perf_counter() - began)
    tick = statistics.median(each["wall_s"] for each in engine.stats()["ticks"])
    engine.close()
    cost = statistics.median(taken)
    return Result("P3", f"{bench.name}: park and resume / a tick", cost / tick, 0.05, facts={"ms": _ms(cost)})


def adapters(bench: Bench, folder: Path) -> list[Result]:
    """P4a: eight combinations / peft with one adapter of their rank; P5: a new combination with many resident / few."""
    engine = bench.engine(max_batch_rows=ROWS)
    names = [f"lora{number}" for number in range(RESIDENT + 5)]
    write_loras(folder, bench.unet(engine), names[:COMBINATIONS], RANK // 2)
    for name in names[:COMBINATIONS]:
        engine.load_lora(name, folder / f"{name}.safetensors", "m")
    rows = min(ROWS, engine.caps.rows(bench.side, bench.side))

    def pair(row: int) -> list[LoRA]:
        return [LoRA(names[(row + place) % COMBINATIONS], 0.5 + row / 10) for place in (0, 1)]

    _tick(bench, engine, [[]] * rows)
    base, single = _tick(bench, engine, [[]] * rows), _tick(bench, engine, [[]])
    mixed, active = _tick(bench, engine, [pair(row) for row in range(rows)]), _tick(bench, engine, [pair(0)])
    few = _activation(bench, engine, names[:5])
    for number, name in enumerate(names[COMBINATIONS:]):
        engine.load_lora(name, folder / f"{names[number % COMBINATIONS]}.safetensors", "m")
    many = _activation(bench, engine, names[5:10])
    engine.close()
    theirs = _peft(bench, rows)
    gain = (rows * active / mixed) / (rows * single / base)
    facts = {"tick (ms)": _ms(mixed), "peft's (ms)": _ms(theirs), "without LoRAs (ms)": _ms(base), "rows": rows}
    resident = f"{bench.name}: a new combination, {len(names)} resident / {COMBINATIONS}"
    return [
        Result("P4a", f"{bench.name}: eight combinations / peft with one adapter", mixed / theirs, 1.10, facts=facts),
        Result("P4b", f"{bench.name}: mixed batch's gain / the bare model's", gain, 0.85, more=True),
        Result("P5", resident, many / few, 2.0, facts={"ms": _ms(few)}),
    ]


def _tick(bench: Bench, engine: Engine, loras: Sequence[Sequence[LoRA]]) -> float:
    """Seconds of a tick of samples with these adapters, in the median."""
    for seed, each in enumerate(loras):
        engine.submit(bench.job(seed, STEPS, each))
    first = len(engine.stats()["ticks"])
    list(engine.run())
    taken = [tick["wall_s"] for tick in engine.stats()["ticks"][first:] if tick["rows"] == len(loras)]
    return float(statistics.median(taken))


def _activation(bench: Bench, engine: Any, names: list[str]) -> float:
    """What the first tick of combinations that were never active takes beside its forward, in the median."""
    taken = []
    for number in range(bench.rounds(20)):
        engine.submit(bench.job(number, 1, [LoRA(name, 0.1 + 0.01 * number) for name in names]))
        bench.synchronize()
        began = time.perf_counter()
        engine.step()
        taken.append(time.perf_counter() - began - engine.stats()["ticks"][-1]["forward_s"])
        list(engine.run())
    return float(statistics.median(taken))


def _peft(bench: Bench, rows: int) -> float:
    """A tick of an engine that has peft's layers in its U-Net, one adapter active."""
    engine = bench.engine(max_batch_rows=ROWS)
    unet = bench.unet(engine)
    targets = r".*\.(to_q|to_k|to_v)"
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights=False)
    peft.inject_adapter_in_model(config, unet, adapter_name="one")
    for module in unet.modules():
        if hasattr(module, "lora_A"):
            for factors in (module.lora_A, module.lora_B):
                factors.to(module.base_layer.weight.device, module.base_layer.weight.dtype)
    _tick(bench, engine, [[]] * rows)
    found = _tick(bench, engine, [[]] * rows)
    engine.close()
    return found


def overlap(bench: Bench) -> Result:
    """P10: four steps a picture, decoded beside the ticks / the longer of both and a batch of the shorter."""
    batches = 3 if bench.quick else BATCHES
    between, denoise, decode = _trace(bench, 0, batches)
    wall, _, _ = _trace(bench, 32, batches)
    best = max(denoise, decode) + min(denoise, decode) / batches
    facts = {
        "denoising (s)": round(denoise, 3),
        "decoding (s)": round(decode, 3),
        "in turn (s)": round(between, 3),
        "overlapped (s)": round(wall, 3),
    }
    return Result("P10", f"{bench.name}: few steps, decoded beside ticks / ideal", wall / best, 1.25, facts=facts)


def _trace(bench: Bench, queue: int, batches: int) -> tuple[float, float, float]:
    """Seconds of full batches: all of it, the sum of their ticks, the sum of their decodes."""
    engine = bench.engine(max_batch_rows=ROWS, decode_queue=queue)
    rows = min(ROWS, engine.caps.rows(bench.side, bench.side))

    def drawn(count: int) -> list[Any]:
        for seed in range(count):
            engine.submit(bench.job(seed, FEW, output="rgb"))
        return [event.value for event in engine.run() if event.kind == "image"]

    drawn(rows)
    first, began = len(engine.stats()["ticks"]), time.perf_counter()
    pictures = drawn(rows * batches)
    wall = time.perf_counter() - began
    denoise = sum(tick["wall_s"] for tick in engine.stats()["ticks"][first:])
    engine.close()
    return wall, denoise, sum(picture.info["seconds"]["decode"] for picture in pictures)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
