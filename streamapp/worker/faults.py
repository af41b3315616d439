"""What becomes of a claimed task's errors before a retry is decided: faults of ours, and files that are mended."""

from __future__ import annotations

from streamapp.errors import AppError
from streamapp.models.verified import DamagedWeights
from streamapp.worker.loading import LoadFailed
from streamapp.worker.parts import Parts


class InternalError(AppError):
    """A fault of this service; retried, because a different worker or moment may not have it."""

    code = "internal_error"
    retryable = True


def internal(error: Exception) -> InternalError:
    """What nobody foresaw, as an error of the task."""
    return InternalError(f"{type(error).__name__}: {error}"[:500])


async def mends(parts: Parts, error: AppError) -> bool:
    """Whether ``error`` is a damaged file, and the right one is on its way to this host."""
    if parts.mend is None or not isinstance(error, LoadFailed) or not isinstance(error.__cause__, DamagedWeights):
        return False
    coming = await parts.mend(error.row)
    if coming and parts.watch is not None:
        parts.watch.forget(error.row)
    return coming
