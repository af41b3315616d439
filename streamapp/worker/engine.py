"""The engine behind the worker's port: weights made ready on demand, events sorted by task. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from streamapp.db import LoraRow, ModelRow
from streamapp.engine.aio import AsyncEngine, open_engine
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event, Picture
from streamapp.engine.job import Job, LoRA
from streamapp.engine.variants import variant_of
from streamapp.errors import AppError
from streamapp.models.catalogue import notes_root
from streamapp.models.verified import check_weights
from streamapp.settings import Settings
from streamapp.telemetry import get_logger
from streamapp.worker.drawing import LOADED, Drawing, Drawn, EngineCrashed, Order, Progress
from streamapp.worker.inputs import framed
from streamapp.worker.loading import loading

log = get_logger(__name__)

#: Checkpoints and LoRAs kept in the engine; the least recently used that nobody draws with goes first.
CHECKPOINTS, LORAS = 2, 64
#: How long the end of one crash may take to reach everybody it concerns, in seconds.
SAME_CRASH = 2.0
CRASHED = "engine_crashed"
#: The engine does not know weights that were loaded before: loading them again helps.
FORGOTTEN = frozenset({"unknown_model", "unknown_lora"})


#: Makes sure that weights are those of their row; blocks, raises AppError.
Check = Callable[[ModelRow | LoraRow, Path], None]


class EngineDrawing:
    """See :class:`streamapp.worker.drawing.Drawing`."""

    def __init__(self, engine: AsyncEngine, patience: float = 120.0, check: Check = lambda *_: None) -> None:
        self._engine = engine
        self._patience = patience
        self._check = check
        self._events: dict[str, asyncio.Queue[Event]] = {}
        self._models: OrderedDict[str, Path] = OrderedDict()
        self._adapters: OrderedDict[tuple[str, str], Path] = OrderedDict()
        self._users: dict[str, Order] = {}
        self._loading = asyncio.Lock()
        self._pump: asyncio.Task[None] | None = None
        self._crash: tuple[float, frozenset[str]] = (0.0, frozenset())

    @property
    def state(self) -> str:
        """The engine's state."""
        return self._engine.state

    @property
    def running(self) -> int:
        """Samples handed over and not at their end."""
        return self._engine.unfinished

    @property
    def checkpoints(self) -> Mapping[str, str]:
        """Loaded checkpoints."""
        return dict.fromkeys(self._models, "vram")

    @property
    def loras(self) -> Mapping[str, str]:
        """Loaded LoRAs."""
        return {name: "vram" for name, _ in self._adapters}

    async def start(self) -> None:
        """Start the engine; see :attr:`state` for when it is ready."""
        await self._engine.start()
        self._pump = asyncio.create_task(self._dispatch(), name="engine events")

    async def close(self) -> None:
        """End the engine."""
        await self._engine.close()
        if self._pump is not None:
            self._pump.cancel()
            with suppress(asyncio.CancelledError):
                await self._pump

    def room(self, width: int, height: int) -> int:
        """Samples of this size in pixels that would join soon."""
        return self._engine.room(width, height)

    async def draw(self, order: Order) -> AsyncIterator[Progress | Drawn]:
        """Make the weights ready, then draw; closing the iterator cancels what is left."""
        task_id, params = order.row.id, order.row.params
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._users[task_id] = order
        left, shares = params.n, dict.fromkeys(range(params.n), 0.0)
        try:
            loaded = await self._prepare(order)
            self._events[task_id] = events
            self._engine.submit(await asyncio.to_thread(engine_job, order), task_id)
            while left:
                event = await events.get()
                if event.kind == "progress":
                    step, steps = event.value
                    shares[event.index] = step / max(steps, 1)
                    yield Progress(sum(shares.values()) / params.n)
                elif event.kind == "image":
                    left -= 1
                    yield drawn(event.index, event.value, loaded)
                elif event.kind == "failed":
                    left = 0
                    raise self._meaning(event.value, task_id)
                elif event.kind == "cancelled":
                    left = 0
                    raise EngineError("engine_closed", "the engine gave the task up", retryable=True)
        finally:
            self._users.pop(task_id, None)
            if self._events.pop(task_id, None) is not None and left:
                self._engine.cancel(task_id)

    # Weights.
    async def _prepare(self, order: Order) -> dict[str, float]:
        """Load what the order needs and the engine lacks; the seconds by stage (empty when all was there).

        ``load`` is what the order waited, also for a load that another one began; ``loaded`` is what its own took.
        """
        began = time.monotonic()
        waited = self._loading.locked() or self._engine.state != "ready"
        await self._until_ready()
        async with self._loading:
            turn = time.monotonic()
            try:
                fresh = await self._load_model(order.model, order.model_path)
                for lora, path, _ in order.loras:
                    key = (lora.name, order.model.name)
                    if self._adapters.get(key) != path:
                        await self._make_room(self._adapters, LORAS)
                        with loading(lora):
                            await asyncio.to_thread(self._check, lora, path)
                            await self._engine.load_lora(lora.name, path, order.model.name)
                        self._adapters[key] = path
                        fresh = True
                    self._adapters.move_to_end(key)
            except EngineError as error:
                await asyncio.sleep(0.1)  # the events of the same crash are on their way
                raise self._meaning(error, order.row.id) from error
        now = time.monotonic()
        return ({"load": now - began} if fresh or waited else {}) | ({LOADED: now - turn} if fresh else {})

    async def warm(self, model: ModelRow, path: Path) -> float:
        """Load a checkpoint before anybody asks for it; the seconds it took."""
        await self._until_ready()
        began = time.monotonic()
        async with self._loading:
            await self._load_model(model, path)
        return time.monotonic() - began

    async def _until_ready(self) -> None:
        """A restart of the engine is waited for, but not for ever: another worker may have one that works."""
        try:
            async with asyncio.timeout(self._patience):
                while self._engine.state != "ready":  # noqa: ASYNC110 - another thread
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise EngineError("engine_closed", f"the engine is {self._engine.state}", retryable=True) from None

    async def _load_model(self, model: ModelRow, path: Path) -> bool:
        name = model.name
        fresh = self._models.get(name) != path
        if fresh:
            await self._make_room(self._models, CHECKPOINTS)
            with loading(model):
                await asyncio.to_thread(self._check, model, path)
                await self._engine.load(name, path, model.family, variant_of(model.traits))
            self._models[name] = path
            log.info("checkpoint loaded", action="loaded", model=name)
        self._models.move_to_end(name)
        return fresh

    async def _make_room(self, table: OrderedDict[Any, Path], limit: int) -> None:
        """Forget the least recently used entries that no order uses, down to below ``limit``."""
        used = {order.model.name for order in self._users.values()}
        used_loras = {(lora.name, o.model.name) for o in self._users.values() for lora, _, _ in o.loras}
        for key in [key for key in table if key not in used and key not in used_loras]:
            if len(table) < limit:
                return
            del table[key]
            if isinstance(key, tuple):
                await self._engine.unload_lora(key[0])
            else:
                await self._engine.unload(key)
                for adapter in [adapter for adapter in self._adapters if adapter[1] == key]:
                    del self._adapters[adapter]

    # Events.
    async def _dispatch(self) -> None:
        while True:
            events = await self._engine.events()
            crashed = [e.job_id for e in events if e.kind == "failed" and _code(e.value) == CRASHED]
            if crashed:
                self._crash = (time.monotonic(), frozenset(crashed))
            for event in events:
                inbox = self._events.get(event.job_id)
                if inbox is not None:
                    inbox.put_nowait(event)

    def _meaning(self, error: Any, task_id: str) -> AppError:
        """An engine's error as the worker's; a crash with everybody who was in the engine."""
        code = _code(error)
        if code == CRASHED:
            at, company = self._crash
            recent = company if time.monotonic() - at < SAME_CRASH else frozenset[str]()
            return EngineCrashed(error.message, suspects=sorted({task_id, *recent}))
        if code in FORGOTTEN:
            self._models.clear()
            self._adapters.clear()
            return EngineError(code, error.message, retryable=True)
        return error if isinstance(error, AppError) else EngineError("internal", str(error))


def _code(error: Any) -> str:
    return str(getattr(error, "code", ""))


def engine_job(order: Order) -> Job:
    """An order in the engine's own form; decodes the picture that it starts from: call it in threads."""
    params = order.row.params
    image, mask = (None, None) if order.files is None else framed(order.files, params)
    return Job(
        model=params.model,
        prompt=params.prompt,
        negative_prompt=params.negative_prompt,
        width=params.drawn.width,
        height=params.drawn.height,
        num_inference_steps=params.steps,
        guidance_scale=params.guidance,
        true_cfg_scale=params.true_cfg,
        sampler=params.sampler,
        seed=params.seed,
        num_images=params.n,
        clip_skip=params.clip_skip,
        loras=tuple(adapters((lora.name, weight) for lora, _, weight in order.loras)),
        image=image,
        mask_image=mask,
        strength=None if params.start is None else params.start.strength,
        output="rgb",
    )


def adapters(named: Iterable[tuple[str, float]]) -> list[LoRA]:
    """LoRAs by name with their weights; one named twice has the sum."""
    weights: dict[str, float] = {}
    for name, weight in named:
        weights[name] = weights.get(name, 0.0) + weight
    return [LoRA(name, weight) for name, weight in weights.items()]


def drawn(index: int, picture: Picture, loaded: Mapping[str, float]) -> Drawn:
    """What the engine tells of a picture, in the worker's words; ``loaded`` are seconds of making weights ready."""
    info = picture.info
    seconds = {**info.get("seconds", {}), **loaded}
    precision = str(info.get("precision", "float32"))
    return Drawn(index, pixels(picture), seconds, tuple(info.get("notes", ())), precision)


def pixels(picture: Picture) -> Any:
    """``(H, W, 3)`` RGB, 0 to 255."""
    return np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3)


def open_drawing(settings: Settings) -> Drawing:
    """The engine that the settings name, not started yet."""
    engine = open_engine(
        settings.engine,
        device=settings.device,
        threads=settings.engine_threads,
        max_batch_rows=settings.max_batch_rows,
        start_grace=settings.engine_start,
    )
    check = partial(check_weights, notes=notes_root(settings), mode=settings.verify)
    return EngineDrawing(engine, settings.engine_start, check)
