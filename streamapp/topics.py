"""The catalogue of topics: names, partitions, retention. Created by our own admin call before any worker starts."""

from __future__ import annotations

from streamapp.broker.admin import TopicSpec
from streamapp.settings import Settings

WORKER_STATUS = "worker_status"
TASK_EVENTS = "task_events"
DEAD_LETTERS = "dead_letters"
THROUGHPUT_TOTALS = "throughput_totals"

#: Without small segments a changelog is hardly ever compacted (Kafka leaves the active segment alone:
#: 1 GiB or 7 days by default) and joining takes minutes instead of a second.
COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "600000",
    "segment.bytes": str(16 * 1024**2),
    "min.cleanable.dirty.ratio": "0.1",
    "max.compaction.lag.ms": "600000",
}


def task_topic(family: str) -> str:
    """Topic of a family's ordinary work (P2, P3)."""
    return f"{family}_tasks"


def urgent_topic(family: str) -> str:
    """Topic of a family's P0 and P1: never stuck behind a full look-ahead of ordinary work."""
    return f"{family}_tasks_urgent"


def topic_for(family: str, priority: int) -> str:
    """Where a task of this family and priority travels."""
    return urgent_topic(family) if priority <= 1 else task_topic(family)


def changelog(app_id: str, table: str) -> str:
    """Faust's own name for a table's changelog topic."""
    return f"{app_id}-{table}-changelog"


def catalogue(settings: Settings) -> list[TopicSpec]:
    """Every topic this service reads or writes, as it must exist before a worker starts."""
    kept = {"cleanup.policy": "delete", "retention.ms": str(int(settings.retention_days * 86_400_000))}
    many, copies = settings.task_partitions, settings.replication
    delivery = [name(family) for family in settings.families for name in (task_topic, urgent_topic)]
    return [
        *(TopicSpec(name, many, copies, kept) for name in (*delivery, TASK_EVENTS)),
        *(TopicSpec(name, 1, copies, kept) for name in (WORKER_STATUS, DEAD_LETTERS, THROUGHPUT_TOTALS)),
        # Source topic and changelog need equal partition counts.
        TopicSpec(changelog(settings.app_id, "throughput_windows"), many, copies, COMPACTED),
        *(
            TopicSpec(changelog(settings.app_id, table), 1, copies, COMPACTED)
            for table in ("worker_backlog", "lora_state", "throughput")
        ),
    ]
