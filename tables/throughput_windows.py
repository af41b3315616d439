"""Counters per minute and hour of the partitions of ``task_events`` that this member owns.

A plain table, because increments through a global one lose updates. Written by ``agents.analytics`` only.
"""

from __future__ import annotations

from typing import Any

import faust


class Window(faust.Record):
    """One window's counters; ``offset`` is the last one counted: an event delivered again is not counted twice."""

    offset: int
    count: dict[str, Any]  # the body of a :class:`streamapp.records.ThroughputCount`


def attach(app: Any) -> Any:
    """Declare the table on ``app``: as many partitions as its source topic."""
    return app.Table("throughput_windows", key_type=str, value_type=Window, partitions=app.settings.task_partitions)
