"""Start, run and stop one process, the same for ``streamapp up|worker|web`` and ``faust -A streamapp.app worker``.

Start: database, storage and engine; the web server, which serves and accepts from here on; then, as soon as the
broker answers, topics and the Faust application. Stop, on SIGTERM or Ctrl-C: event streams end, running samples
finish within ``drain`` seconds, the rest is handed back, ``gone`` is said, offsets are committed, the group is
left. A second signal stops at once.

Exit codes: 0 stopped as asked, everything finished or handed back; 1 crashed; 3 stopped, but not everything could
be written within the time; 78 a setting, or what is on the broker, is wrong; 128 + n stopped by a second signal n.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal, NoReturn, cast

import faust
import uvloop

from streamapp import topics
from streamapp.app import StreamApp, create_app
from streamapp.arrivals import look_after
from streamapp.db import revision
from streamapp.errors import AppError, ConfigError, Unavailable
from streamapp.retention import purge
from streamapp.runtime import close_runtime, open_runtime
from streamapp.settings import Settings
from streamapp.telemetry import configure_logging, get_logger

log = get_logger(__name__)

STOPPED, CRASHED, INCOMPLETE, MISCONFIGURED = 0, 1, 3, os.EX_CONFIG
#: Seconds that leaving the group and closing may take after the drain.
FAREWELL = 15.0


class Crashed(Exception):
    """Something that must run for as long as the process ended by itself."""


class Process:
    """One process of the service, from start to exit code."""

    def __init__(self, app: StreamApp) -> None:
        self.app = app
        self.stopping = asyncio.Event()
        self._signals = 0
        self._background: list[asyncio.Task[Any]] = []
        self._faust_started = False
        self._opened = False

    def on_signal(self, number: signal.Signals) -> None:
        """First signal: begin to stop. Second: stop now."""
        self._signals += 1
        if self._signals > 1:
            log.warning("stopped at once by a second signal", action="stopped_now", signal=number.name)
            sys.stderr.flush()
            os._exit(128 + number)
        log.info("stopping", action="stopping", signal=number.name)
        self.stopping.set()

    async def run(self) -> int:
        """Run until a signal or a crash; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.on_signal, number)
        code = CRASHED
        try:
            await self._until_stopping(self._serve())
            code = STOPPED
        except ConfigError as error:
            log.error(error.message, action="start_refused", code=error.code)  # noqa: TRY400 - a sentence is enough
            code = MISCONFIGURED
        except AppError as error:
            log.error(error.message, action="start_failed", code=error.code)  # noqa: TRY400 - as above
            code = MISCONFIGURED if not error.retryable else CRASHED
        except Crashed as error:
            log.error(str(error), action="crashed")  # noqa: TRY400 - Faust logged the cause
        except OSError as error:
            log.error("the process cannot start", action="start_failed", error=str(error))  # noqa: TRY400 - as above
        except Exception:  # supervised: whatever it is, claims are handed back before the process ends
            log.exception("the process crashed", action="crashed")
        finally:
            complete = await self._stop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return INCOMPLETE if code == STOPPED and not complete else code

    async def _until_stopping(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until it ends, raises, or the process shall stop."""
        task = asyncio.create_task(work, name="serve")
        stop = asyncio.create_task(self.stopping.wait(), name="stop")
        done, _ = await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task in done:
            task.result()
            return
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _serve(self) -> None:
        """The start, stage by stage, and then watching."""
        app = self.app
        app.runtime = runtime = await open_runtime(app)
        self._opened = True
        if runtime.worker is not None:
            await runtime.worker.start()
        await app.web.start()
        log.info("serving", action="serving", role=app.role, host=app.settings.host, port=app.port)
        for make in app.background:
            self._supervise(make())
        await self._reach_schema()
        runtime.outbox.start()
        if runtime.preparing is not None:
            runtime.preparing.start()
        self._supervise(purge(runtime))
        self._supervise(look_after(runtime))
        await self._reach_broker()
        app.finalize()
        await asyncio.to_thread(app.conf.datadir.mkdir, parents=True, exist_ok=True)
        self._faust_started = True
        await app.start()
        runtime.status.start()
        log.info("working", action="working", role=app.role, worker_id=app.settings.worker_id)
        await self._watch()

    async def _reach_schema(self) -> None:
        """Wait until the database answers and has its tables."""
        delay = 0.5
        while True:
            try:
                if await revision(self.app.settings.database_url) is not None:
                    return
                reason = "it has no tables yet: run `streamapp db upgrade`"
            except Unavailable as error:
                reason = error.message
            log.warning("waiting for the database", action="database_waits", reason=reason, delay=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    async def _reach_broker(self) -> None:
        """Wait for the broker, then create the topics that are missing.

        Raises:
            PartitionMismatch: a topic exists with another number of partitions than the settings say.
        """
        admin, delay = self.app.runtime.admin, 0.5
        while True:
            try:
                await admin.start()
                created = await admin.create_topics(topics.catalogue(self.app.settings))
            except Unavailable as error:
                log.warning("waiting for the broker", action="broker_waits", reason=error.message, delay=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
                continue
            if created:
                log.info("topics created", action="topics_created", topics=created)
            return

    def _supervise(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(asyncio.create_task(work))

    async def _watch(self) -> None:
        """Return never; raise when Faust or a background task ends by itself."""
        app = self.app
        ended = [asyncio.create_task(app._crashed.wait()), asyncio.create_task(app._stopped.wait())]
        try:
            done, _ = await asyncio.wait({*ended, *self._background}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ended:
                task.cancel()
        for task in done & set(self._background):
            task.result()
        raise Crashed(f"the stream application ended by itself: {app.crash_reason or 'no reason given'}")

    async def _stop(self) -> bool:
        """Everything in order, each stage bounded; whether all of it could be done."""
        app = self.app
        app.closing.set()
        if not self._opened:
            return True
        runtime, settings = app.runtime, app.settings
        runtime.status.state = "draining"
        runtime.status.changed()
        stages: list[tuple[str, Callable[[], Awaitable[Any]], float]] = []
        if runtime.worker is not None:
            worker = runtime.worker
            stages.append(("drain", lambda: worker.drain(settings.drain), settings.drain + 10))
        stages.append(("status", runtime.status.close, 5.0))
        stages.append(("background", self._end_background, 5.0))
        stages.append(("outbox", runtime.outbox.close, 5.0))
        if self._faust_started:
            stages.append(("stream application", app.stop, FAREWELL))
        stages.append(("web server", app.web.stop, 10.0))
        stages.append(("runtime", lambda: close_runtime(runtime), FAREWELL))
        complete = True
        for name, work, limit in stages:
            began = time.monotonic()
            try:
                async with asyncio.timeout(limit):
                    await work()
            except TimeoutError:
                complete = False
                log.warning("a stage of the stop took too long", action="stop_late", stage=name, limit=limit)
            except Unavailable as error:
                complete = False
                log.warning(error.message, action="stop_incomplete", stage=name)
            except Exception:  # supervised: the next stages must run
                complete = False
                log.exception("a stage of the stop failed", action="stop_failed", stage=name)
            log.debug("stage of the stop done", action="stop_stage", stage=name, seconds=time.monotonic() - began)
        log.info("stopped", action="stopped", complete=complete)
        return complete

    async def _end_background(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)


class ServiceWorker(faust.Worker):
    """What ``faust worker`` runs: the same process as our own command line."""

    def execute_from_commandline(self) -> NoReturn:
        """Run until stopped, then exit with the code of :class:`Process`."""
        app = cast("StreamApp", self.app)
        configure_logging(app.settings)
        raise SystemExit(_run(app, self.loop))


def run_app(
    settings: Settings, role: Literal["up", "worker", "web"], prepare: Callable[[StreamApp], object] = lambda _: None
) -> NoReturn:
    """Run a role until it is stopped, then raise :class:`SystemExit` with the code; ``prepare`` gets the application.

    Raises:
        ConfigError: the role does not fit the settings.
    """
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    app = create_app(settings, role)
    prepare(app)
    raise SystemExit(_run(app, loop))


def _run(app: StreamApp, loop: asyncio.AbstractEventLoop) -> int:
    app.in_worker = True
    try:
        code = loop.run_until_complete(Process(app).run())
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=2.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        return code
    finally:
        sys.stderr.flush()
        asyncio.set_event_loop(None)
        loop.close()


def main(arguments: list[str] | None = None) -> NoReturn:
    """``python -m streamapp.run up|worker|web``: the role with settings from the environment."""
    from streamapp.settings import load_settings

    given = sys.argv[1:] if arguments is None else arguments
    role = given[0] if given else "up"
    if role not in {"up", "worker", "web"}:
        raise SystemExit(f"the role must be up, worker or web, not {role}")
    try:
        settings = load_settings()
        configure_logging(settings)
        run_app(settings, cast("Literal['up', 'worker', 'web']", role))
    except ConfigError as error:
        sys.stderr.write(error.message + "\n")
        raise SystemExit(MISCONFIGURED) from None


if __name__ == "__main__":
    main()
