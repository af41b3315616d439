"""Before and after the engine: a claimed row to an order with files, a drawn picture to a stored one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from streamapp.clock import Clock
from streamapp.db import ImageRow, Inputs, LoraRow, ModelRow, Registry, TaskRow
from streamapp.errors import NotFound
from streamapp.models import quarantine
from streamapp.models.catalogue import locate, notes_root
from streamapp.models.verified import note_use
from streamapp.postprocess import Encoded, finish_picture
from streamapp.recipe import Origin, image_recipe, image_seed
from streamapp.settings import Settings
from streamapp.storage import Storage, image_key
from streamapp.worker.drawing import Drawn, Order
from streamapp.worker.inputs import fetch, fetch_control, restored
from streamapp.worker.loading import WeightsComing
from streamapp.worker.spool import Spool

#: Seconds for which a registry row is not asked for again; a row of one name and version does not change.
FRESH = 10.0
KEPT = 512
#: Seconds that a claimed task waits for weights to come to this host before it makes room for others.
MOMENT = 1.0
R = TypeVar("R", ModelRow, LoraRow)


#: Brings the weights of a row to this host, on and on also when its caller does not wait; False: nobody else has them.
Bring = Callable[[ModelRow | LoraRow], Awaitable[bool]]


class Orders:
    """Looks up the weights that rows name, and fetches the pictures that they start from."""

    def __init__(
        self, settings: Settings, registry: Registry, inputs: Inputs, storage: Storage, bring: Bring | None = None
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._inputs = inputs
        self._storage = storage
        self._bring = bring
        self._models: dict[str, tuple[float, ModelRow, Path]] = {}
        self._loras: dict[str, tuple[float, LoraRow, Path]] = {}

    async def __call__(self, row: TaskRow) -> Order:
        """The order of a claimed row.

        Raises:
            Quarantined: the model or a LoRA failed to load too often.
            NotFound: the model or a LoRA is not registered any more, or its file cannot be had; or a picture that it
                starts from or is steered by is gone.
            WeightsComing: its file is on its way to this host.
            Unavailable: the database or the storage does not answer.
        """
        model, path = await self._model(row.params.model)
        loras = [(*await self._lora(lora.name), lora.weight) for lora in row.params.loras]
        words = [await self._lora(each.name) for each in row.params.embeddings]
        start = row.params.start
        files = None if start is None else await fetch(self._storage, self._inputs, start)
        controls = [
            (*await self._lora(each.name), await fetch_control(self._storage, self._inputs, each))
            for each in row.params.controls
        ]
        return Order(row, model, path, tuple(loras), files, tuple(words), tuple(controls))

    async def checkpoint(self, name: str) -> tuple[ModelRow, Path]:
        """A checkpoint and where it lies on this host, waiting for it to come as long as it comes.

        Raises:
            NotFound: see :meth:`__call__`.
        """
        while True:
            with suppress(WeightsComing):
                return await self._model(name)

    def forget(self, name: str) -> None:
        """Read the row of a name anew: it was just changed."""
        self._models.pop(name, None)
        self._loras.pop(name, None)

    async def _model(self, name: str) -> tuple[ModelRow, Path]:
        known = self._known(self._models, name)
        if known is None:
            found = await self._registry.model(name)
            if found is None:
                raise NotFound(f"model {name} is not registered any more", field="model", name=name)
            quarantine.refuse(found)
            known = await self._keep(self._models, name, found)
            await self._registry.touch_model(name)
        return known

    async def _lora(self, name: str) -> tuple[LoraRow, Path]:
        known = self._known(self._loras, name)
        if known is None:
            found = await self._registry.lora(name)
            if found is None:
                raise NotFound(f"LoRA {name} is not registered any more", field="loras", name=name)
            quarantine.refuse(found)
            known = await self._keep(self._loras, name, found)
            await self._registry.touch_lora(name)
        return known

    @staticmethod
    def _known(table: Mapping[str, tuple[float, R, Path]], name: str) -> tuple[R, Path] | None:
        entry = table.get(name)
        if entry is None or time.monotonic() - entry[0] > FRESH:
            return None
        return entry[1], entry[2]

    async def _keep(self, table: dict[str, tuple[float, R, Path]], name: str, row: R) -> tuple[R, Path]:
        try:
            path = await asyncio.to_thread(locate, row, self._settings)
        except NotFound:
            await self._fetched(row)
            path = await asyncio.to_thread(locate, row, self._settings)
        if len(table) >= KEPT:
            table.clear()
        table[name] = (time.monotonic(), row, path)
        await asyncio.to_thread(note_use, path, notes_root(self._settings))
        return row, path

    async def _fetched(self, row: ModelRow | LoraRow) -> None:
        """Have a file brought to this host that is not here: in a moment, or in the background.

        Raises:
            WeightsComing: it takes longer.
            NotFound: it cannot be had.
        """
        try:
            async with asyncio.timeout(MOMENT):
                found = self._bring is not None and await self._bring(row)
        except TimeoutError:
            raise WeightsComing(f"{row.name} is being brought to this host", name=row.name) from None
        if not found:
            raise NotFound(
                f"{row.name}: its weights are not at {row.path} on this machine, and cannot be fetched; add them again",
                name=row.name,
            )


class Publisher:
    """Turns drawn pictures into stored ones; encoding runs in threads, several pictures overlap."""

    def __init__(self, settings: Settings, spool: Spool, clock: Clock) -> None:
        self._device = settings.device
        self._spool = spool
        self._clock = clock

    async def __call__(self, order: Order, drawn: Drawn) -> tuple[ImageRow, float]:
        """Finish, store and describe one picture; the seconds are those of post-processing and storing."""
        began = time.monotonic()
        row, params = order.row, order.row.params
        origin = Origin(
            task_id=row.id,
            index=drawn.index,
            model_digest=order.model.digest,
            drawn_ms=self._clock.now(),
            digests={row.name: row.digest for row in order.added},
            hashes={lora.name: str(lora.traits["autov3"]) for lora, _, _ in order.loras if "autov3" in lora.traits},
            device=self._device,
            precision=drawn.precision,
            notes=drawn.notes,
        )
        recipe = image_recipe(params, origin)
        files = order.files
        around = None if files is None or files.mask is None else lambda image: restored(image, files, params)
        encoded: Encoded = await asyncio.to_thread(finish_picture, drawn.picture, params, recipe, around=around)
        key = image_key(row.id, drawn.index, encoded.extension)
        await self._spool.put(key, encoded.data, encoded.content_type)
        image = ImageRow(
            task_id=row.id,
            idx=drawn.index,
            key=key,
            content_type=encoded.content_type,
            bytes=len(encoded.data),
            width=encoded.width,
            height=encoded.height,
            seed=image_seed(params, drawn.index),
            digest=encoded.digest,
            recipe=recipe,
        )
        return image, time.monotonic() - began
