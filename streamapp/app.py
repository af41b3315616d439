"""The one Faust application, built from the settings and a role.

``faust -A streamapp.app worker`` and ``streamapp up|worker|web`` run the same thing. What belongs to a role is
an explicit list below: discovery only warns about a module that fails to import, and the worker would run on
with that agent missing.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import faust
from aiohttp.web import AppRunner, TCPSite
from aiokafka.errors import MessageSizeTooLargeError
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.types import AppT
from faust.web.drivers.aiohttp import Web

from streamapp import topics
from streamapp.broker.security import faust_credentials
from streamapp.errors import ConfigError, Unavailable
from streamapp.records import DeadLetter
from streamapp.sending import SEND_TIMEOUT, Outgoing, send_all
from streamapp.settings import Settings, load_settings
from streamapp.telemetry import get_logger, logging_config

if TYPE_CHECKING:
    from streamapp.runtime import Runtime

log = get_logger(__name__)
Role = Literal["up", "worker", "web"]

TABLES = ("worker_backlog", "lora_state", "throughput_windows", "throughput")
CONTROL_AGENTS = ("agents.status", "agents.analytics", "agents.totals", "agents.dead_letters")
TASK_AGENTS = ("agents.intake", "agents.gpu")
#: The order matters: middlewares first.
WEB = (
    "web.errors",
    "web.auth",
    "web.generate",
    "web.tasks",
    "web.dead_letters",
    "web.events",
    "web.callbacks",
    "web.files",
    "web.health",
    "web.status",
    "web.fetches",
    "web.upkeep",
    "web.inputs",
    "web.loras",
    "web.openapi",
    "web.page",
)
FLUSH_TIMEOUT = 5.0


@dataclass(frozen=True)
class Tables:
    """The tables as agents and views use them; only their writer agents write."""

    worker_backlog: Any
    lora_state: Any
    throughput_windows: Any
    throughput: Any
    #: Rows as they were last read, by key: see :mod:`streamapp.read_models`.
    read: dict[str, tuple[Any, Any]] = field(default_factory=dict)


class ServiceWeb(Web):
    """Faust's web server with our routes only, and without a minute's wait for open event streams at the end."""

    def _enabled_blueprints(self) -> list[tuple[str, Any]]:
        return []

    def __init__(self, app: AppT, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._runner = AppRunner(self.web_app, access_log=None, shutdown_timeout=2.0, handle_signals=False)

    def _new_transport_tcp(self) -> TCPSite:
        conf = self.app.conf
        port = conf.web_port if cast("StreamApp", self.app).settings.port else 0
        return TCPSite(self._runner, conf.web_bind, port)

    @property
    def port(self) -> int:
        """The port it listens on; differs from the setting when that is 0."""
        addresses = self._runner.addresses
        return int(addresses[0][1]) if addresses else int(self.app.conf.web_port)


class Boot(BootStrategy):
    """The web server is started by :mod:`streamapp.run`, before and without the broker."""

    enable_web = False


class StreamApp(faust.App):
    """The Faust application and what agents and views reach through it."""

    BootStrategy = Boot

    def __init__(self, settings: Settings, role: Role) -> None:
        self.settings = settings
        self.role: Role = role
        self.embedded_log_path: Path = settings.log_path
        self.embedded_max_bytes: int = settings.embedded_max_bytes
        #: Set when this process begins to stop: event streams end, nothing new is taken.
        self.closing = asyncio.Event()
        #: Plain counters for status and metrics.
        self.counters: dict[str, int] = {}
        #: Work beside Faust that must run for as long as the process: started with it, ended after the drain.
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._runtime: Runtime | None = None
        super().__init__(settings.app_id, **faust_settings(settings))
        self.read_models = Tables(**{name: _module(f"tables.{name}").attach(self) for name in TABLES})

    @property
    def runtime(self) -> Runtime:
        """What agents and views use; there once the process has started."""
        if self._runtime is None:
            raise Unavailable("the process is still starting", retry_after=1)
        return self._runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def _new_web(self) -> ServiceWeb:
        return ServiceWeb(self)

    @property
    def port(self) -> int:
        """The port that the web server listens on."""
        return cast("ServiceWeb", self.web).port

    @property
    def tables_ready(self) -> bool:
        """Whether tables hold what their changelogs say and no rebalance is under way."""
        recovery = cast("TableManager", self.tables).recovery
        return bool(self.started and not self.rebalancing and recovery.completed.is_set())

    async def produce(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
    ) -> tuple[int, int]:
        """Send one record and wait until the broker has it: its partition and offset.

        Raises:
            Unavailable: the broker is not connected, refuses or does not answer within ten seconds.
        """
        [answer] = await self.produce_all([(topic, partition, key, value)])
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    async def produce_all(self, records: Sequence[Outgoing]) -> list[tuple[int, int] | Unavailable]:
        """Send records in their order and wait for all: where the broker put each, or why it did not take it."""
        return await send_all(self, records)

    async def dead_letter(self, letter: DeadLetter) -> None:
        """Send a dead letter, trying again while the broker is away; what it is about must not be acked before."""
        key = (letter.task_id or f"{letter.topic}-{letter.partition}-{letter.offset}").encode()
        delay = 0.2
        while True:
            try:
                await self.produce(topics.DEAD_LETTERS, None, key, letter.encode())
                return
            except Unavailable as error:
                if self.closing.is_set():
                    raise
                if letter.raw is not None and _too_large(error):
                    # This broker takes smaller records than most: no letter may stop the topic that it came from.
                    letter = letter.model_copy(update={"raw": None})
                    continue
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    async def _producer_flush(self, logger: Any) -> None:
        # With the broker down aiokafka waits for minutes; everything that matters is awaited where it is sent.
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await super()._producer_flush(logger)
        except TimeoutError:
            log.warning("the broker did not take everything in time", action="flush_timeout")
        except RuntimeError as error:
            # Of an application that crashed the producer may have ended first; the rest must be stopped all the same.
            log.warning("the producer has ended before its last flush", action="flush_failed", error=str(error))


def _too_large(error: BaseException) -> bool:
    """Whether a record was refused for its size."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MessageSizeTooLargeError):
        cause = cause.__cause__
    return cause is not None


def create_app(settings: Settings, role: Role) -> StreamApp:
    """The application of a role with its tables, agents and views attached.

    Raises:
        ConfigError: the role does not fit the settings, or a listed module is missing.
    """
    if settings.embedded and role != "up":
        raise ConfigError(
            f"`streamapp {role}` needs a broker that several processes can share, and embedded:// lives in one: "
            "set STREAMAPP_BROKER=kafka://host:port, or run everything with `streamapp up`"
        )
    app = StreamApp(settings, role)
    agents = CONTROL_AGENTS if role == "web" else (*CONTROL_AGENTS, *TASK_AGENTS)
    for name in (*agents, *WEB):
        _module(name).attach(app)
    return app


def faust_settings(settings: Settings) -> dict[str, Any]:
    """What Faust is told, and why where it is not obvious."""
    return {
        "broker": "embedded://local" if settings.embedded else settings.broker,
        "broker_credentials": faust_credentials(settings),
        "broker_session_timeout": settings.session_timeout,
        "broker_heartbeat_interval": settings.heartbeat_interval,
        "broker_commit_interval": settings.commit_interval,
        "broker_max_poll_records": 100,
        "consumer_auto_offset_reset": "earliest",
        "producer_acks": -1,
        "producer_compression_type": None if settings.kafka_compression == "none" else settings.kafka_compression,
        # 1,200 s by default, for which send() would block.
        "producer_request_timeout": SEND_TIMEOUT,
        # Else a rebalance waits until every held job is drawn.
        "stream_wait_empty": False,
        # The queue feeds one loop for all topics: it must hold what the fetcher has in flight for every partition.
        "stream_buffer_maxsize": 5 * 100 * max(settings.task_partitions, 8),
        # The default of 1 leaves workers empty-handed.
        "table_standby_replicas": 0,
        "topic_disable_leader": True,
        # Topics are created by our own admin call, with retention and compaction of our choice.
        "topic_allow_declare": False,
        "topic_partitions": settings.task_partitions,
        "topic_replication_factor": settings.replication,
        "store": "memory://",
        "datadir": str(settings.data_path / "faust"),
        "autodiscover": False,
        "web_bind": settings.host,
        "web_host": settings.host,
        # Faust refuses 0, "a free one": see ServiceWeb.
        "web_port": settings.port or 8000,
        "web_in_thread": False,
        "web_application_options": {"client_max_size": settings.max_request_bytes},
        "Worker": "streamapp.run:ServiceWorker",
        "logging_config": logging_config(settings),
        "worker_redirect_stdouts": False,
    }


def _module(name: str) -> Any:
    """A listed module, which must have ``attach``."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise ConfigError(f"module {name} is missing: run from the source tree or install the package") from error
        raise
    if not callable(getattr(module, "attach", None)):
        raise ConfigError(f"{module.__file__} is not ours: another package named {name} hides it")
    return module


def __getattr__(name: str) -> Any:
    """``streamapp.app.app``, made when asked for: ``faust -A streamapp.app worker``."""
    if name != "app":
        raise AttributeError(name)
    settings = load_settings()
    role = os.environ.get("STREAMAPP_ROLE") or ("up" if settings.embedded else "worker")
    if role not in {"up", "worker", "web"}:
        raise ConfigError(f"STREAMAPP_ROLE must be up, worker or web, not {role}", field="STREAMAPP_ROLE")
    globals()["app"] = made = create_app(settings, cast("Role", role))
    return made
