"""Two processes of one thread each learn faster than one of two: gradients are averaged by gloo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def run(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call ``function(rank, processes, *arguments)`` in each of them and wait; with one, here.

    Raises:
        torch.multiprocessing.ProcessRaisedException: when one of them fails.
    """
    if processes == 1:
        function(0, 1, *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        from torch.multiprocessing.spawn import spawn

        begin: Any = spawn
        begin(_begin, (processes, meeting, function, arguments), nprocs=processes)


def _begin(rank: int, processes: int, meeting: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    try:
        function(rank, processes, *arguments)
    finally:
        torch.distributed.destroy_process_group()
