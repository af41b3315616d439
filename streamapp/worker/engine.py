"""The engine in its child process behind the worker's port. Imports no torch."""

from __future__ import annotations

from streamapp.settings import Settings
from streamapp.worker.drawing import Drawing


def open_drawing(settings: Settings) -> Drawing:
    """The engine that the settings name, not started yet."""
    raise NotImplementedError(settings.engine)
