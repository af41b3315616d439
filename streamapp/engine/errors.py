"""What the engine refuses or fails at, as data."""

from __future__ import annotations

from typing import Any

from streamapp.errors import AppError


class EngineError(AppError):
    """A job the engine refuses, or one that failed; ``code`` is per instance.

    Codes: ``invalid_job``, ``unknown_model``, ``unknown_sampler``, ``unknown_schedule``, ``unknown_lora``,
    ``incompatible_lora``, ``load_failed``, ``not_finite``, ``decode_failed``, ``does_not_fit``,
    ``memory_pressure`` (retryable), ``out_of_memory``, ``engine_crashed`` (retryable), ``engine_closed`` (retryable),
    ``internal``;
    of parked samples ``unknown_sample``, ``bad_state`` and ``state_mismatch``;
    of controls ``unknown_control``, ``incompatible_control``, ``invalid_image``, ``unknown_preprocessor`` and
    ``missing_weights``.
    """

    status = 400

    def __init__(self, code: str, message: str, *, retryable: bool = False, **details: Any) -> None:
        super().__init__(message, **details)
        self.code = code
        self.retryable = retryable

    def __reduce__(self) -> tuple[Any, ...]:
        """Crosses the pipe to the parent unchanged."""
        return (_rebuild, (self.code, self.message, self.retryable, self.details))


def _rebuild(code: str, message: str, retryable: bool, details: dict[str, Any]) -> EngineError:
    return EngineError(code, message, retryable=retryable, **details)
