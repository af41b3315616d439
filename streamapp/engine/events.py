"""What the engine tells: progress, pictures, failures."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["progress", "preview", "image", "failed", "cancelled"]


@dataclass(frozen=True)
class Event:
    """Something that happened to image ``index`` of a job (−1: to all of it).

    ``value`` by kind: ``progress`` → ``(step, steps)``; ``preview`` → a small :class:`Picture`; ``image`` →
    :class:`Picture`, a PIL image or a latent; ``failed`` → :class:`~streamapp.engine.errors.EngineError`;
    ``cancelled`` → None.
    """

    job_id: str
    index: int
    kind: Kind
    value: Any = None


@dataclass(frozen=True)
class Picture:
    """A finished picture as raw bytes, three per pixel (RGB8), row by row from the top; it crosses processes as it is.

    ``info`` says how it came about: ``seed``, ``sampler``, ``steps``, ``seconds`` by stage (encode, denoise, decode),
    ``precision`` and ``notes``.
    """

    width: int
    height: int
    pixels: bytes
    info: dict[str, Any] = field(default_factory=dict)

    def to_pil(self) -> Any:
        """The same as a PIL image."""
        from PIL import Image

        return Image.frombytes("RGB", (self.width, self.height), self.pixels)


class Inbox:
    """Events on their way from the thread that hears of them to the one that asks."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[list[Event]] = queue.SimpleQueue()

    def __bool__(self) -> bool:
        return not self._events.empty()

    def put(self, events: list[Event]) -> None:
        """Something happened, or nothing."""
        if events:
            self._events.put(events)

    def take(self, timeout: float) -> list[Event]:
        """All of it, waiting up to ``timeout`` seconds for the first."""
        try:
            events = self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait()
        except queue.Empty:
            return []
        while self:
            events = [*events, *self._events.get_nowait()]
        return events
