"""Totals per window from all partitions, as absolute values, readable on every member.

Written by ``agents.totals`` only; keyed like :attr:`streamapp.records.ThroughputCount.key`.
"""

from __future__ import annotations

from typing import Any

import faust


class Throughput(faust.Record):
    """One partition's window: ``count`` is the body of a :class:`streamapp.records.ThroughputCount`."""

    start: int  # ms, start of the window
    count: dict[str, Any]


def attach(app: Any) -> Any:
    """Declare the table on ``app``."""
    return app.GlobalTable("throughput", key_type=str, value_type=Throughput, partitions=1, recovery_buffer_size=1)
