"""Which weights the engine has and how they get there. One load at a time: whoever calls holds a lock."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from streamapp.db import LoraRow, ModelRow
from streamapp.engine.aio import AsyncEngine
from streamapp.engine.errors import EngineError
from streamapp.engine.families import CONTROLNET
from streamapp.engine.tiers import Loaded
from streamapp.engine.variants import variant_of
from streamapp.models.learned import token
from streamapp.models.steering import engine_name
from streamapp.telemetry import get_logger
from streamapp.worker.drawing import Order
from streamapp.worker.loading import loading

log = get_logger(__name__)
#: LoRAs kept on the device; the least recently used that nobody draws with goes first. Checkpoints have a budget.
LORAS = 64
#: ControlNets kept on the device, each about as large as a half of a checkpoint; those that are drawn with stay.
CONTROLS = 5
#: Seconds after which a load that found no room is tried again, also when nothing seems to have ended.
AGAIN = 1.0

#: Makes sure that weights are those of their row; blocks, raises AppError.
Check = Callable[[ModelRow | LoraRow, Path], None]


class Resident:
    """See the module.

    Attributes:
        users: orders under way, also those that wait for their weights.
        drawn_with: by the id of a task whose weights are ready, its checkpoint.
    """

    def __init__(self, engine: AsyncEngine, check: Check) -> None:
        self._engine = engine
        self._check = check
        self._models: dict[str, Path] = {}
        self._adapters: OrderedDict[tuple[str, str], Path] = OrderedDict()
        #: Loaded ControlNets: the engine's name and the registry's, the least recently used first.
        self._controls: OrderedDict[str, str] = OrderedDict()
        self._paths: dict[str, Path] = {}
        self._ended = asyncio.Event()
        self.users: dict[str, Order] = {}
        self.drawn_with: dict[str, str] = {}

    @property
    def checkpoints(self) -> Mapping[str, str]:
        """Checkpoints in memory by name, with their tier."""
        held = self._engine.stats().get("tiers", {}).get("ram", {}).get("paths", ())
        copies = {name: "ram" for name, path in self._paths.items() if str(path.absolute()) in held}
        return {**copies, **dict.fromkeys(self._models, "vram")}

    @property
    def loras(self) -> Mapping[str, str]:
        """LoRAs and ControlNets on the device."""
        return dict.fromkeys([*(name for name, _ in self._adapters), *self._controls.values()], "vram")

    def ended(self, task_id: str) -> None:
        """A task draws no more: its checkpoint may make room."""
        self.users.pop(task_id, None)
        self.drawn_with.pop(task_id, None)
        self._ended.set()

    def forget(self) -> None:
        """The engine lost its weights."""
        self._models.clear()
        self._adapters.clear()
        self._controls.clear()

    async def model(self, row: ModelRow, path: Path) -> Loaded | None:
        """Load a checkpoint unless it is there; waits while all that could make room are drawn with."""
        name = row.name
        if self._models.get(name) == path:
            return None
        with loading(row):
            await asyncio.to_thread(self._check, row, path)
            loaded = await self._load(row, path)
        for gone in (name, *loaded.evicted):
            self._dropped(gone)
        self._models[name] = self._paths[name] = path
        log.info(
            "checkpoint loaded",
            action="loaded",
            model=name,
            tier=loaded.tier,
            bytes=loaded.bytes,
            seconds=round(loaded.seconds, 4),
            evicted=list(loaded.evicted),
        )
        return loaded

    async def lora(self, row: LoraRow, path: Path, model: str) -> bool:
        """Load a LoRA for a checkpoint unless it is there; whether it was loaded."""
        key = (row.name, model)
        fresh = self._adapters.get(key) != path
        if fresh:
            await self._room_for_lora()
            with loading(row):
                await asyncio.to_thread(self._check, row, path)
                loaded = await self._engine.load_lora(row.name, path, model)
            self._adapters[key] = path
            log.info(
                "LoRA loaded",
                action="lora_loaded",
                lora=row.name,
                model=model,
                tier=loaded.tier,
                bytes=loaded.bytes,
                seconds=round(loaded.seconds, 4),
            )
        self._adapters.move_to_end(key)
        return fresh

    async def control(self, row: LoraRow, path: Path) -> bool:
        """Load a ControlNet unless it is there; whether it was loaded."""
        name = engine_name(row)
        fresh = name not in self._controls
        if fresh:
            await self._room_for_control()
            with loading(row):
                await asyncio.to_thread(self._check, row, path)
                loaded = await self._engine.load(name, path, CONTROLNET)
            self._controls[name] = row.name
            log.info(
                "ControlNet loaded",
                action="control_loaded",
                control=row.name,
                bytes=loaded.bytes,
                seconds=round(loaded.seconds, 4),
            )
        self._controls.move_to_end(name)
        return fresh

    async def words(self, order: Order) -> None:
        """Load the learned words that an order's prompts name; the engine knows which it has, and reads none twice."""
        for row, path in order.embeddings:
            with loading(row):
                await asyncio.to_thread(self._check, row, path)
                await self._engine.load_embedding(token(row), path, order.model.name)

    async def ahead(self, row: ModelRow | LoraRow, path: Path) -> None:
        """Have weights read into RAM while others draw, unless they are nearer already."""
        if isinstance(row, LoraRow):
            if not any(name == row.name for name, _ in self._adapters):
                await self._engine.prefetch_lora(path)
        elif row.name not in self._models:
            self._paths[row.name] = path
            await self._engine.prefetch(path, row.family, variant_of(row.traits))

    async def _load(self, row: ModelRow, path: Path) -> Loaded:
        while True:
            self._ended.clear()
            keep = set(self.drawn_with.values())
            try:
                return await self._engine.load(row.name, path, row.family, variant_of(row.traits), keep)
            except EngineError as error:
                if error.code != "no_room":
                    raise
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN):
                    await self._ended.wait()

    def _dropped(self, model: str) -> None:
        self._models.pop(model, None)
        for adapter in [adapter for adapter in self._adapters if adapter[1] == model]:
            del self._adapters[adapter]

    async def _room_for_control(self) -> None:
        """Free the least recently used ControlNets that no order uses, down to below the limit."""
        used = {engine_name(row) for order in self.users.values() for row, _, _ in order.controls}
        for name in [name for name in self._controls if name not in used]:
            if len(self._controls) < CONTROLS:
                return
            with suppress(EngineError):  # its last picture may still be on its way: it goes another time
                await self._engine.unload(name)
                del self._controls[name]

    async def _room_for_lora(self) -> None:
        """Forget the least recently used LoRAs that no order uses, down to below the limit."""
        used = {(lora.name, order.model.name) for order in self.users.values() for lora, _, _ in order.loras}
        for key in [key for key in self._adapters if key not in used]:
            if len(self._adapters) < LORAS:
                return
            del self._adapters[key]
            await self._engine.unload_lora(key[0])
