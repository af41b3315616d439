"""What every live process last said about itself and its backlog, keyed by worker id.

Written by ``agents.status`` only, with absolute values; readable on every member.
"""

from __future__ import annotations

from typing import Any

import faust


class WorkerBacklog(faust.Record):
    """One worker's last status: ``status`` is the body of a :class:`streamapp.records.WorkerStatus`."""

    worker_id: str
    at: int  # ms of the database clock
    status: dict[str, Any]


def attach(app: Any) -> Any:
    """Declare the table on ``app``."""
    return app.GlobalTable(
        "worker_backlog", key_type=str, value_type=WorkerBacklog, partitions=1, recovery_buffer_size=1
    )
