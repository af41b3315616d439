"""What views and the router read from the tables: plain functions over the last known values, no queries."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

from streamapp.records import ThroughputCount, WorkerStatus


def statuses(app: Any) -> list[WorkerStatus]:
    """The last status of every live process, sorted by id.

    Those silent for longer than ``worker_silence`` are left out: the table forgets them only when another speaks.
    """
    now, silence = app.runtime.clock.now(), app.settings.worker_silence * 1000
    rows = [(key, row) for key, row in list(app.read_models.worker_backlog.items()) if now - row.at <= silence]
    return sorted((_status(app, key, row) for key, row in rows), key=lambda status: status.worker_id)


def _status(app: Any, key: str, row: Any) -> WorkerStatus:
    """A row's status; it is read for every submit and changes once a second, so the last one read is kept."""
    read = app.read_models.read
    known, status = read.get(key, (None, None))
    if known is not row:
        status = WorkerStatus.model_validate(row.status)
        read[key] = (row, status)
    return cast("WorkerStatus", status)


def workers(app: Any) -> list[dict[str, Any]]:
    """The last status of every live process as JSON-serialisable data, with its age in seconds (``age``)."""
    now = app.runtime.clock.now()
    return [
        {**status.model_dump(mode="json"), "age": round(max(0, now - status.at) / 1000, 1)} for status in statuses(app)
    ]


def backlog(app: Any) -> dict[str, dict[str, Any]]:
    """Jobs and seconds of work held by all workers, by model, with the share of each worker."""
    models: dict[str, dict[str, Any]] = defaultdict(lambda: {"jobs": 0, "seconds": 0.0, "workers": {}})
    for status in statuses(app):
        for model, load in status.backlog.items():
            entry = models[model]
            entry["jobs"] += load.jobs
            entry["seconds"] = round(entry["seconds"] + load.seconds, 3)
            entry["workers"][status.worker_id] = load.model_dump(mode="json")
    return dict(models)


def lora_state(app: Any) -> dict[str, dict[str, Any]]:
    """What is resident on each live worker: checkpoints and LoRAs by name with their tier."""
    live = {status.worker_id for status in statuses(app) if status.role != "web"}
    return {
        key: {"checkpoints": dict(row.checkpoints), "loras": dict(row.loras)}
        for key, row in sorted(app.read_models.lora_state.items())
        if key in live
    }


def throughput(app: Any, minutes: int = 60) -> list[dict[str, Any]]:
    """Counters per window of the last ``minutes``, newest first, summed over the partitions they were counted in."""
    since = app.runtime.clock.now() - minutes * 60_000
    sums: dict[tuple[Any, ...], dict[str, Any]] = {}
    for _, row in list(app.read_models.throughput.items()):
        count = ThroughputCount.model_validate(row.count)
        length = 60_000 if count.window == "minute" else 3_600_000
        if count.start + length <= since:
            continue
        key = (count.window, count.start, count.family, count.shape, count.with_lora)
        total = sums.get(key)
        if total is None:
            sums[key] = count.model_dump(mode="json", exclude={"partition"})
            continue
        for name in ("submitted", "finished", "failed", "images", "steps"):
            total[name] += getattr(count, name)
        for stage, value in count.seconds.items():
            total["seconds"][stage] = round(total["seconds"].get(stage, 0.0) + value, 4)
    return sorted(sums.values(), key=lambda total: (-total["start"], total["window"], total["family"], total["shape"]))
