"""Loads that fail, and whose fault that is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from streamapp.db import LoraRow, ModelRow, Registry
from streamapp.errors import AppError, Unavailable
from streamapp.models import quarantine
from streamapp.models.cache import kind_of
from streamapp.models.verified import DamagedWeights
from streamapp.telemetry import get_logger

log = get_logger(__name__)
Row = ModelRow | LoraRow
#: Failures of the engine, the moment or the choice of what is added to a model: they say nothing about the file.
OTHERS = frozenset(
    [
        *("engine_closed", "engine_crashed", "unavailable", "unknown_model"),
        *("unknown_lora", "incompatible_lora", "unknown_embedding", "incompatible_embedding"),
        *("unknown_control", "incompatible_control"),
    ]
)
#: They may not count against the file, but the same load may succeed later.
PASSING = frozenset({"out_of_memory"})


class LoadFailed(AppError):
    """Weights could not be loaded; ``code`` and message are those of the cause, ``row`` is whose they are."""

    def __init__(self, row: Row, cause: AppError) -> None:
        field = quarantine.FIELDS[kind_of(row)]
        super().__init__(cause.message, **{**cause.details, "field": field, "name": row.name})
        self.code, self.status, self.row = cause.code, cause.status, row
        # Every byte was read and is wrong: reading them again soon would tell the same.
        self.retryable = not isinstance(cause, DamagedWeights)


class WeightsComing(AppError):
    """What a task names is on its way to this host; other tasks go on meanwhile."""

    code = "weights_coming"
    retryable = True


@contextmanager
def loading(row: Row) -> Iterator[None]:
    """Raise what fails inside as :class:`LoadFailed`, unless it is no failure of these weights."""
    try:
        yield
    except AppError as error:
        if error.code in OTHERS or isinstance(error, LoadFailed):
            raise
        raise LoadFailed(row, error) from error


class Watch:
    """Keeps the registry's word on which weights load; ``changed`` hears the name of a row that says something new."""

    def __init__(self, registry: Registry, changed: Callable[[str], None] = lambda _: None) -> None:
        self._registry, self._changed = registry, changed

    async def failed(self, error: AppError) -> None:
        """Count a failed load against its weights; other errors are none of them."""
        if isinstance(error, LoadFailed) and error.code not in PASSING:
            await self._write(quarantine.failed(self._registry, error.row, error))
            self._changed(error.row.name)

    async def worked(self, rows: Sequence[Row]) -> None:
        """These were just loaded and drawn with."""
        for row in rows:
            await self._write(quarantine.worked(self._registry, row))

    def forget(self, row: Row) -> None:
        """Its file is about to be another one."""
        self._changed(row.name)

    @staticmethod
    async def _write(note: Awaitable[None]) -> None:
        """What happens to the task does not wait for a database that is away."""
        try:
            await note
        except Unavailable as error:
            log.warning(error.message, action="load_not_noted")
