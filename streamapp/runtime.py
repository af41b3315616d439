"""What a running process consists of, opened in order and closed in reverse; agents and views use ``app.runtime``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import faust.types

from streamapp import read_models
from streamapp.broker.admin import Admin, open_admin
from streamapp.broker.record import TP
from streamapp.clock import Clock
from streamapp.db import (
    Claims,
    Database,
    DeadLetters,
    Delivery,
    Inputs,
    Registry,
    Tasks,
    open_database,
    upgrade,
)
from streamapp.errors import Unavailable
from streamapp.models import catalogue, shipped
from streamapp.models.cache import DiskCache, Kind, in_memory
from streamapp.models.fetching import Fetches
from streamapp.models.referenced import References
from streamapp.models.shared import SharedWeights
from streamapp.outbox import Outbox, open_outbox
from streamapp.settings import Settings
from streamapp.storage import Storage, open_storage
from streamapp.submit.shelf import Shelf
from streamapp.telemetry import get_logger
from streamapp.worker.status import StatusWriter

if TYPE_CHECKING:
    from streamapp.app import StreamApp
    from streamapp.worker.pictures import Orders
    from streamapp.worker.preparing import Preparing
    from streamapp.worker.worker import Worker

log = get_logger(__name__)


@dataclass(frozen=True)
class Runtime:
    """The opened parts of one process; ``worker`` is ``None`` in the web role."""

    settings: Settings
    role: Literal["up", "worker", "web"]
    app: StreamApp
    database: Database
    tasks: Tasks
    delivery: Delivery
    claims: Claims
    letters: DeadLetters
    registry: Registry
    inputs: Inputs
    shelf: Shelf
    cache: DiskCache
    fetches: Fetches
    references: References
    shared: SharedWeights | None
    storage: Storage
    admin: Admin
    clock: Clock
    outbox: Outbox
    status: StatusWriter
    worker: Worker | None
    preparing: Preparing | None

    def pings(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What readiness asks, by name; each raises ``Unavailable`` with a sentence when it does not answer."""
        checks: dict[str, Callable[[], Awaitable[None]]] = {
            "broker": self.admin.ping,
            "database": self.database.ping,
            "storage": self.storage.ping,
            "tables": self._ping_tables,
        }
        if self.worker is not None:
            checks["engine"] = self._ping_engine
        if self.preparing is not None:
            checks["weights"] = self.preparing.ping
        return checks

    async def _ping_tables(self) -> None:
        if not self.app.tables_ready:
            raise Unavailable("tables are being read from their changelogs, or partitions are moving", retry_after=2)

    async def _ping_engine(self) -> None:
        state = self.worker.drawing.state if self.worker is not None else "closed"
        if state != "ready":
            raise Unavailable(f"the engine is {state}", retry_after=5)


async def open_runtime(app: StreamApp) -> Runtime:
    """Open database, storage and worker; nothing here needs the broker.

    With ``embedded://`` the database is brought to this release first; elsewhere that is ``streamapp db upgrade``.

    Raises:
        Unavailable: in embedded mode, when the database cannot be opened.
    """
    settings = app.settings
    await asyncio.to_thread(settings.data_path.mkdir, parents=True, exist_ok=True)
    admin = open_admin(settings)
    if settings.embedded:
        await admin.start()  # refuses a second process on the same data before that touches anything
    database, registry = await _open_database(settings)
    storage = open_storage(settings)
    await storage.start()
    clock = await _open_clock(database)
    tasks, delivery, claims = Tasks(database), Delivery(database), Claims(database)
    shared = SharedWeights(storage, delivery) if settings.common_storage else None
    shelf, cache = _open_shelf(app, registry, tasks, shared)
    fetches = Fetches(settings, registry, cache, changed=shelf.forget, shared=shared)
    worker, preparing = _open_work(app, claims=claims, registry=registry, storage=storage, clock=clock, fetches=fetches)
    return Runtime(
        settings=settings,
        role=app.role,
        app=app,
        database=database,
        tasks=tasks,
        delivery=delivery,
        claims=claims,
        letters=DeadLetters(database),
        registry=registry,
        inputs=Inputs(database),
        shelf=shelf,
        cache=cache,
        fetches=fetches,
        references=References(settings, registry, fetches.sites, wanted=tasks.naming, changed=shelf.forget),
        shared=shared,
        storage=storage,
        admin=admin,
        clock=clock,
        outbox=open_outbox(app, tasks=tasks, delivery=delivery, admin=admin),
        status=_open_status(app, worker, clock),
        worker=worker,
        preparing=preparing,
    )


def _open_status(app: StreamApp, worker: Worker | None, clock: Clock) -> StatusWriter:
    status = StatusWriter(
        app.settings, app.role, worker, now=clock.now, port=lambda: app.port, send=partial(_send_status, app)
    )
    if worker is not None:
        worker.on_change(status.changed)
    return status


async def _open_clock(database: Database) -> Clock:
    """The database's clock, read if it answers."""
    clock = Clock(database.now)
    try:
        await clock.sync()
    except Unavailable as error:
        log.warning(error.message, action="database_waits")
    return clock


def _open_shelf(
    app: StreamApp, registry: Registry, tasks: Tasks, shared: SharedWeights | None
) -> tuple[Shelf, DiskCache]:
    shelf, resident = Shelf(registry), partial(_resident, app)
    elsewhere = None if shared is None else shared.has
    return shelf, DiskCache(
        app.settings, registry, wanted=tasks.naming, resident=resident, changed=shelf.forget, elsewhere=elsewhere
    )


def _resident(app: StreamApp) -> set[tuple[Kind, str]]:
    """What live workers hold in memory, by what they say of themselves."""
    return in_memory(read_models.lora_state(app).values())


async def _open_database(settings: Settings) -> tuple[Database, Registry]:
    if settings.embedded:
        await upgrade(settings.database_url)
    database = open_database(settings.database_url)
    await database.start()
    registry = Registry(database)
    if settings.embedded:
        await shipped.seed(registry)
    return database, registry


def _open_work(
    app: StreamApp,
    *,
    claims: Claims,
    registry: Registry,
    storage: Storage,
    clock: Clock,
    fetches: Fetches,
) -> tuple[Worker, Preparing] | tuple[None, None]:
    """The worker, and what makes its weights ready; imported here, because the web role has neither."""
    if app.role == "web":
        return None, None
    from streamapp.worker.pictures import Orders
    from streamapp.worker.preparing import Preparing

    orders = Orders(app.settings, registry, Inputs(registry.database), storage, fetches.bring)
    worker = _open_worker(app, claims, orders, storage, clock, registry, fetches=fetches)
    preparing = Preparing(
        app.settings,
        registry,
        worker.drawing,
        checkpoint=orders.checkpoint,
        bring=fetches.bring,
        pull=fetches.once,
        loaded=worker.loaded,
    )
    return worker, preparing


def _open_worker(
    app: StreamApp,
    claims: Claims,
    orders: Orders,
    storage: Storage,
    clock: Clock,
    registry: Registry,
    *,
    fetches: Fetches,
) -> Worker:
    """The worker with its engine."""
    from streamapp.worker.ahead import Ahead
    from streamapp.worker.engine import open_drawing
    from streamapp.worker.loading import Watch
    from streamapp.worker.parts import Parts
    from streamapp.worker.pictures import Publisher
    from streamapp.worker.spool import Spool
    from streamapp.worker.worker import Worker

    spool = Spool(storage, app.settings.spool_bytes)

    def release(tp: TP) -> None:
        app.consumer.on_buffer_drop(faust.types.TP(*tp))  # Faust asserts its own type here

    drawing, place = open_drawing(app.settings), partial(catalogue.locate, settings=app.settings)
    parts = Parts(
        claims=claims,
        drawing=drawing,
        spool=spool,
        clock=clock,
        order=orders,
        publish=Publisher(app.settings, spool, clock),
        dead_letter=app.dead_letter,
        release=release,
        watch=Watch(registry, orders.forget),
        ahead=Ahead(registry.model, registry.lora, place, drawing.ahead),
        mend=fetches.bring.again,
    )
    return Worker(app.settings, parts)


async def _send_status(app: StreamApp, status: Any) -> None:
    from streamapp import topics

    await app.produce(topics.WORKER_STATUS, None, status.worker_id.encode(), status.encode())


async def close_runtime(runtime: Runtime) -> None:
    """Close everything, also after a failed start; each part gets a bounded time."""
    parts: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("fetches", runtime.fetches.close),
        ("outbox", runtime.outbox.close),
        ("storage", runtime.storage.close),
        ("admin", runtime.admin.close),
        ("database", runtime.database.close),
    ]
    if runtime.worker is not None:
        parts.insert(0, ("worker", runtime.worker.close))
    if runtime.preparing is not None:
        parts.insert(0, ("preparing", runtime.preparing.close))
    for name, close in parts:
        try:
            async with asyncio.timeout(10.0):
                await close()
        except Exception:  # supervised: one part that does not close must not keep the others open
            log.exception("a part did not close", action="close_failed", part=name)
