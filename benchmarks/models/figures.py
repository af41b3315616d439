"""What is measured of loading, and what it must reach; the form is that of the engine's figures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engine.figures import METRICS, Metric

RESULTS = Path(__file__).resolve().parents[1] / "results" / "models.json"
#: What is only stated: any value reaches it.
STATED = 0.0

MODELS = {
    metric.id: metric
    for metric in (
        Metric("P6a", "checkpoint load / raw read of the same ranges, cold, ratio of minima", "x", 0.85, 0.95, True),
        Metric("P6b", "the same, page cache warm / memcpy, destination touched before", "x", 0.75, 0.85, True),
        Metric("P6c", "load and place / stock load_file and copy, cold (stated only)", "x", STATED, STATED, True),
        Metric("P6d", "switch from RAM into the set / from a disk paced at 1 GB/s", "x", 0.3, 0.2),
        Metric("P7", "wall of compute beside prefetch / the longer of the two", "x", 1.10, 1.03),
        Metric("P6e", "peak of anonymous and shared memory of a load, sets allocated / file", "x", 1.6, 1.15),
        Metric("P6f", "download of 1 GiB with SHA-256, paced at 250 MB/s / curl of it", "x", 1.5, 1.1),
    )
}  # fmt: skip
METRICS.update(MODELS)
