"""How long a denoiser's forwards take, on the device that computes them."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Times every forward of a module.

    A CUDA device works behind the caller: events in its stream take the times there, and are read once it is done.

    Args:
        device: ``cpu`` or ``cuda:0``, where the module is.
    """

    def __init__(self, module: torch.nn.Module, device: str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._began: Any = None
        self._laps: list[tuple[Any, Any]] = []
        self._hooks = (module.register_forward_pre_hook(self._start), module.register_forward_hook(self._stop))

    def close(self) -> None:
        """Leave the module as it was."""
        for hook in self._hooks:
            hook.remove()

    def seconds(self) -> float:
        """Of all forwards since the last call; the device has finished whatever it was given before this returns."""
        laps, self._laps = self._laps, []
        if not self._cuda:
            return float(sum(end - began for began, end in laps))
        torch.cuda.current_stream().synchronize()
        return float(sum(began.elapsed_time(end) for began, end in laps)) / 1000.0

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        cuda: Any = torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def _start(self, *_: object) -> None:
        self._began = self._now()

    def _stop(self, *_: object) -> None:
        self._laps.append((self._began, self._now()))
