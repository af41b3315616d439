"""What a worker is given: everything outside it that it uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from streamapp.broker.record import TP
from streamapp.clock import Clock
from streamapp.db import Claims, ImageRow, LoraRow, ModelRow, TaskRow
from streamapp.records import DeadLetter
from streamapp.worker.ahead import Ahead
from streamapp.worker.drawing import Drawing, Drawn, Order
from streamapp.worker.loading import Watch
from streamapp.worker.spool import Spool


class Orders(Protocol):
    """Finds the weights that rows name."""

    async def __call__(self, row: TaskRow) -> Order:
        """The order of a claimed row; raises what is wrong with it as an ``AppError``."""


class Publish(Protocol):
    """Turns one drawn picture into a stored one."""

    async def __call__(self, order: Order, drawn: Drawn) -> tuple[ImageRow, float]:
        """The row of the stored picture and the seconds that post-processing and storing took."""


@dataclass(frozen=True)
class Parts:
    """The worker's surroundings.

    Attributes:
        release: lets a held partition flow again.
        watch: hears what loads and what does not.
        mend: has a damaged file brought anew; ``False`` when it cannot be had.
    """

    claims: Claims
    drawing: Drawing
    spool: Spool
    clock: Clock
    order: Orders
    publish: Publish
    dead_letter: Callable[[DeadLetter], Awaitable[None]]
    release: Callable[[TP], object]
    watch: Watch | None = None
    ahead: Ahead | None = None
    mend: Callable[[ModelRow | LoraRow], Awaitable[bool]] | None = None
