"""The engine behind the worker's port: weights made ready on demand, events sorted by task. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from streamapp.db import LoraRow, ModelRow
from streamapp.engine.aio import AsyncEngine, open_engine
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event, Picture
from streamapp.engine.job import Control, Job, LoRA
from streamapp.errors import AppError
from streamapp.models.catalogue import notes_root
from streamapp.models.learned import token, with_tokens
from streamapp.models.steering import engine_name
from streamapp.models.verified import check_weights
from streamapp.settings import Settings
from streamapp.telemetry import get_logger
from streamapp.worker.drawing import LOADED, Drawing, Drawn, EngineCrashed, Order, Progress
from streamapp.worker.inputs import framed, steering
from streamapp.worker.resident import Check, Resident

log = get_logger(__name__)

#: How long the end of one crash may take to reach everybody it concerns, in seconds.
SAME_CRASH = 2.0
CRASHED = "engine_crashed"
#: The engine does not know weights that were loaded before: loading them again helps.
FORGOTTEN = frozenset({"unknown_model", "unknown_lora", "unknown_embedding", "unknown_control"})


class EngineDrawing:
    """See :class:`streamapp.worker.drawing.Drawing`."""

    def __init__(self, engine: AsyncEngine, patience: float = 120.0, check: Check = lambda *_: None) -> None:
        self._engine = engine
        self._patience = patience
        self._events: dict[str, asyncio.Queue[Event]] = {}
        self._resident = Resident(engine, check)
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
        """Checkpoints in memory."""
        return self._resident.checkpoints

    @property
    def loras(self) -> Mapping[str, str]:
        """Loaded LoRAs and ControlNets."""
        return self._resident.loras

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
        self._resident.users[task_id] = order
        left, shares = params.n, dict.fromkeys(range(params.n), 0.0)
        try:
            loaded = await self._prepare(order)
            self._events[task_id] = events
            # Only pictures that go in are work for a thread: the way there and back costs a lone task a millisecond.
            plain = order.files is None and not order.controls
            job = engine_job(order) if plain else await asyncio.to_thread(engine_job, order)
            self._engine.submit(job, task_id)
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
            self._resident.ended(task_id)
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
                loaded = await self._resident.model(order.model, order.model_path)
                self._resident.drawn_with[order.row.id] = order.model.name
                styles = [await self._resident.lora(lora, path, order.model.name) for lora, path, _ in order.loras]
                styles += [await self._resident.control(row, path) for row, path, _ in order.controls]
                await self._resident.words(order)
            except EngineError as error:
                await asyncio.sleep(0.1)  # the events of the same crash are on their way
                raise self._meaning(error, order.row.id) from error
        now, fresh = time.monotonic(), loaded is not None or any(styles)
        facts = {"load": now - began} if fresh or waited else {}
        if loaded is not None:
            facts |= {f"load_{loaded.tier}": loaded.seconds, "load_mb": loaded.bytes / 1e6}
        return facts | ({LOADED: now - turn} if fresh else {})

    async def warm(self, model: ModelRow, path: Path) -> float:
        """Load a checkpoint before anybody asks for it; the seconds it took."""
        await self._until_ready()
        began = time.monotonic()
        async with self._loading:
            await self._resident.model(model, path)
        return time.monotonic() - began

    async def ahead(self, row: ModelRow | LoraRow, path: Path) -> None:
        """Have weights read into RAM while others draw."""
        if self._engine.state == "ready":
            with suppress(EngineError):  # it is told to whoever needs them
                await self._resident.ahead(row, path)

    async def _until_ready(self) -> None:
        """A restart of the engine is waited for, but not for ever: another worker may have one that works."""
        if self._engine.state == "ready":
            return
        try:
            async with asyncio.timeout(self._patience):
                while self._engine.state != "ready":  # noqa: ASYNC110 - another thread
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise EngineError("engine_closed", f"the engine is {self._engine.state}", retryable=True) from None

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
            self._resident.forget()
            return EngineError(code, error.message, retryable=True)
        return error if isinstance(error, AppError) else EngineError("internal", str(error))


def _code(error: Any) -> str:
    return str(getattr(error, "code", ""))


def engine_job(order: Order) -> Job:
    """An order in the engine's own form; decodes the pictures that go in: call it in threads where there are any."""
    params, words = order.row.params, [word for word, _ in order.embeddings]
    image, mask = (None, None) if order.files is None else framed(order.files, params)
    return Job(
        model=params.model,
        prompt=with_tokens(params.prompt, words),
        negative_prompt=None if params.negative_prompt is None else with_tokens(params.negative_prompt, words),
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
        embeddings=tuple(token(word) for word in words),
        image=image,
        mask_image=mask,
        strength=None if params.start is None else params.start.strength,
        controls=tuple(_controls(order)),
        output="rgb",
    )


def _controls(order: Order) -> Iterator[Control]:
    params = order.row.params
    for (row, _, data), ref in zip(order.controls, params.controls, strict=True):
        picture = steering(data, ref, params)
        yield Control(engine_name(row), picture, scale=ref.scale, start=ref.start, end=ref.end, mode=ref.mode)


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
        strict_precision=settings.strict_precision,
        start_grace=settings.engine_start,
        budgets=(settings.vram_max_bytes, settings.ram_max_bytes),
    )
    check = partial(check_weights, notes=notes_root(settings), mode=settings.verify)
    return EngineDrawing(engine, settings.engine_start, check)
