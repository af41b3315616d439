"""What is resident where: checkpoints and LoRAs by tier, keyed by worker id.

Written by ``agents.status`` only, with absolute values; readable on every member.
"""

from __future__ import annotations

from typing import Any

import faust


class LoraState(faust.Record):
    """One worker's resident weights: name to tier (``vram``, ``ram``, ``disk``)."""

    worker_id: str
    at: int  # ms of the database clock
    checkpoints: dict[str, Any]
    loras: dict[str, Any]


def attach(app: Any) -> Any:
    """Declare the table on ``app``."""
    return app.GlobalTable("lora_state", key_type=str, value_type=LoraState, partitions=1, recovery_buffer_size=1)
