"""The engine as the service's event loop sees it: nothing here blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from streamapp.engine.caps import default_samples
from streamapp.engine.decoder import WAITING
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event
from streamapp.engine.families import CONTROLNET
from streamapp.engine.host import EngineThread, Host
from streamapp.engine.job import Job
from streamapp.engine.process import EngineProcess
from streamapp.engine.tiers import Loaded
from streamapp.engine.unfinished import OVER

POLL_S = 0.5


class AsyncEngine:
    """A host of an engine, its events pumped onto the event loop by one thread."""

    def __init__(self, host: Host, *, family: str | None = None, max_batch_rows: int | None = None) -> None:
        self._host = host
        self._family = family
        self._max_rows = max_batch_rows
        self._inbox: asyncio.Queue[list[Event]] = asyncio.Queue()
        self._left: dict[str, int] = {}
        #: Images whose steps are done, until their picture comes.
        self._decoding: set[tuple[str, int]] = set()
        self._stop = threading.Event()
        self._pump: threading.Thread | None = None

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``restarting``, ``failed`` or ``closed``."""
        return self._host.state

    @property
    def host(self) -> Host:
        """The host itself (its process id, its restarts)."""
        return self._host

    async def start(self) -> None:
        """Start the host and the pump; does not wait until it is ready (see :attr:`state`)."""
        loop = asyncio.get_running_loop()
        self._host.start()
        self._pump = threading.Thread(target=self._run, args=(loop,), name="engine-pump", daemon=True)
        self._pump.start()

    async def close(self) -> None:
        """End the host."""
        self._stop.set()
        await asyncio.to_thread(self._host.close)
        if self._pump is not None:
            await asyncio.to_thread(self._pump.join, 5)

    async def load(
        self,
        name: str,
        path: str | Path,
        family: str | None = None,
        variant: str | None = None,
        keep: Collection[str] = (),
    ) -> Loaded:
        """Load a checkpoint or a ControlNet; returns when it can be drawn with. Those in ``keep`` do not make room."""
        # A ControlNet is none of the family that stands in for all others.
        drawn = family if family == CONTROLNET else self._family or family
        return await asyncio.to_thread(self._host.load, name, path, drawn, variant, keep)

    async def prefetch(self, path: str | Path, family: str | None = None, variant: str | None = None) -> None:
        """Have a checkpoint read into RAM; returns when that has begun."""
        await asyncio.to_thread(self._host.prefetch, path, self._family or family, variant)

    async def prefetch_lora(self, path: str | Path) -> None:
        """Have a LoRA's file read into RAM; returns when that has begun."""
        await asyncio.to_thread(self._host.prefetch_lora, path)

    async def unload(self, name: str) -> None:
        """Free a checkpoint."""
        await asyncio.to_thread(self._host.unload, name)

    async def load_lora(self, name: str, path: str | Path, model: str) -> Loaded:
        """Load an adapter for a checkpoint."""
        return await asyncio.to_thread(self._host.load_lora, name, path, model)

    async def unload_lora(self, name: str) -> None:
        """Forget an adapter."""
        await asyncio.to_thread(self._host.unload_lora, name)

    async def load_embedding(self, name: str, path: str | Path, model: str) -> None:
        """Let prompts of a checkpoint name a learned word."""
        await asyncio.to_thread(self._host.load_embedding, name, path, model)

    async def unload_embedding(self, name: str) -> None:
        """Forget a learned word."""
        await asyncio.to_thread(self._host.unload_embedding, name)

    def submit(self, job: Job, job_id: str) -> None:
        """Hand a job over.

        Raises:
            EngineError: for values that no family draws; everything else arrives as a ``failed`` event.
        """
        self._host.submit(job, job_id)
        self._left[job_id] = job.num_images

    def cancel(self, job_id: str, index: int | None = None) -> None:
        """Take a job's samples out at the next tick."""
        self._host.cancel(job_id, index)

    async def events(self) -> list[Event]:
        """What happened since the last call; waits for something."""
        events = await self._inbox.get()
        while not self._inbox.empty():
            events = [*events, *self._inbox.get_nowait()]
        for event in events:
            if event.kind == "progress" and event.value[0] >= event.value[1]:
                self._decoding.add((event.job_id, event.index))
            if event.kind in OVER:
                self._over(event)
        return events

    def _over(self, event: Event) -> None:
        """An image, or a whole job, is at its end."""
        self._decoding = {
            (job, index) for job, index in self._decoding if job != event.job_id or event.index not in (-1, index)
        }
        if event.job_id in self._left:
            left = 0 if event.index < 0 else self._left[event.job_id] - 1
            if left:
                self._left[event.job_id] = left
            else:
                del self._left[event.job_id]

    @property
    def unfinished(self) -> int:
        """Samples handed over and not at their end yet."""
        return sum(self._left.values())

    def room(self, width: int, height: int) -> int:
        """How many more samples of this size would join soon, whatever their model.

        What is learned of batches of this size counts, where that is less than the default: the most of any model's.
        Pictures that are being decoded leave room, up to the queue for that.
        """
        samples = default_samples(width, height)
        if self._max_rows is not None:
            samples = min(samples, max(1, self._max_rows // 2))
        learned = self._host.stats().get("batches", ())
        worthwhile = [each["samples"] for each in learned if tuple(each["size"]) == (width, height)]
        decoding = min(len(self._decoding), WAITING)
        return min(samples, max(worthwhile, default=samples)) - (self.unfinished - decoding)

    def stats(self) -> dict[str, Any]:
        """The engine's figures: samples waiting and running, resident bytes by name, last ticks."""
        return self._host.stats()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            events = self._host.step(POLL_S)
            if events:
                try:
                    loop.call_soon_threadsafe(self._inbox.put_nowait, events)
                except RuntimeError:  # the loop is closed: nobody listens any more
                    return


def open_engine(
    kind: Literal["process", "inline", "fake", "fake-process"],
    *,
    device: str = "cpu",
    threads: int = 1,
    max_batch_rows: int | None = None,
    strict_precision: bool = False,
    start_grace: float = 120.0,
    budgets: tuple[int | None, int | None] = (None, None),
    options: dict[str, Any] | None = None,
) -> AsyncEngine:
    """The engine a setting names.

    ``process``: a child process (production); ``inline``: a thread of this process; ``fake``: a thread that draws
    stripes for free whatever the checkpoint; ``fake-process``: the same in a child process. ``budgets`` are the bytes
    that weights may take in VRAM and in RAM.
    """
    family = "fake" if kind.startswith("fake") else None
    arguments: dict[str, Any] = {
        "device": device,
        "dtype": "auto",
        "strict_precision": strict_precision,
        "threads": threads,
        "max_batch_rows": max_batch_rows,
        "vram_bytes": budgets[0],
        "ram_bytes": budgets[1],
        "options": options or {},
    }
    if kind in {"inline", "fake"}:
        return AsyncEngine(EngineThread(**arguments), family=family, max_batch_rows=max_batch_rows)
    if kind in {"process", "fake-process"}:
        # After a crash the worker decides: it knows which jobs are suspects, also across workers.
        host = EngineProcess(start_grace=start_grace, attempts=1, **arguments)
        return AsyncEngine(host, family=family, max_batch_rows=max_batch_rows)
    raise EngineError("invalid_job", f"engine {kind!r} is not known")
