"""Where decodes run beside the denoising: a stream of its own on a CUDA device, just a thread elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Lane(Protocol):
    """Work of another thread on the same device."""

    def mark(self) -> Any:
        """Called by the thread that hands work over: what the device must have done before that work may begin."""

    def entered(self, mark: Any) -> Any:
        """A context in which the other thread works; it leaves when the device is done with it."""


class HostLane:
    """Nothing runs behind the host's back."""

    def mark(self) -> Any:
        """Nothing to wait for."""
        return None

    @contextmanager
    def entered(self, mark: Any) -> Iterator[None]:
        """No difference."""
        del mark
        yield


class CudaLane:
    """A stream of its own, so that its kernels wait for the marked ones only."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream: Any = None

    def mark(self) -> Any:
        """An event behind all that the calling thread has asked the device for."""
        cuda = sys.modules["torch"].cuda
        event = cuda.Event()
        event.record(cuda.current_stream(self._device))
        return event

    @contextmanager
    def entered(self, mark: Any) -> Iterator[None]:
        """Waits for the end also where the work failed: its memory may be given to others then."""
        cuda = sys.modules["torch"].cuda
        if self._stream is None:
            self._stream = cuda.Stream(self._device)
        with cuda.device(self._device), cuda.stream(self._stream):
            self._stream.wait_event(mark)
            try:
                yield
            finally:
                self._stream.synchronize()


def attention(device: str) -> tuple[str, ...]:
    """The kernels that torch may choose attention's from on a device; empty before torch is there."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ()
    if not device.startswith("cuda"):
        return ("flash", "math")
    told = torch.backends.cuda
    kinds = {"flash": "flash", "mem_efficient": "efficient", "cudnn": "cudnn", "math": "math"}
    return tuple(name for kind, name in kinds.items() if getattr(told, f"{kind}_sdp_enabled", lambda: False)())


def lane_of(device: str) -> Lane:
    """The lane of a device."""
    return CudaLane(device) if device.startswith("cuda") else HostLane()
