"""Which checkpoints and LoRAs are known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, Row, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from streamapp.db.database import Database
from streamapp.db.rows import LoraRow, ModelRow, dump
from streamapp.db.schema import loras, models, now_ms

W = TypeVar("W", ModelRow, LoraRow)


class Registry:
    """The ``models`` and ``loras`` tables; a name may have several versions, the newest is meant by the name alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def database(self) -> Database:
        """Where the tables are."""
        return self._database

    async def models(self) -> list[ModelRow]:
        """Every checkpoint, by name and version."""
        return await self._all(models, ModelRow)

    async def model(self, name: str, version: str | None = None) -> ModelRow | None:
        """One checkpoint, by default its last added version."""
        return await self._one(models, ModelRow, name, version)

    async def add_model(self, row: ModelRow) -> None:
        """Add a checkpoint, or replace the facts about this name and version."""
        await self._add(models, row)

    async def insert(self, row: ModelRow | LoraRow) -> bool:
        """Add weights under a name that nothing of their kind has yet; ``False``, and nothing done, when it has."""
        table = loras if isinstance(row, LoraRow) else models
        c = table.c
        facts = {
            "family": row.family, "source": row.source, "path": row.path, "digest": row.digest, "size": row.size,
            "traits": dump(row.traits), "name": row.name, "version": row.version,
        }  # fmt: skip

        mine = (c.name == row.name) & (c.version == row.version)
        others = select(c.version).where(c.name == row.name, c.version != row.version).with_for_update()

        def work(connection: Connection) -> bool:
            if connection.scalar(select(c.name).where(c.name == row.name).limit(1)) is not None:
                return False
            connection.execute(insert(table).values({**facts, "added_at": now_ms()}))
            # A row that is not there cannot be locked, so two may come as far as here with two versions. Each waits
            # now for the other's row: one of them collides, is rolled back, and finds the name taken on its next try.
            if connection.scalars(others).first() is None:
                return True
            connection.execute(delete(table).where(mine))
            return False

        try:
            return await self._database.write(work)
        except IntegrityError:
            return False

    async def edit(self, row: ModelRow | LoraRow, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> bool:
        """Change the traits of this name and version as they are now; ``False`` when its row is gone.

        ``change`` may be called again when somebody else writes at the same moment.
        """
        table = loras if isinstance(row, LoraRow) else models
        meant = (table.c.name == row.name) & (table.c.version == row.version)

        def work(connection: Connection) -> bool:
            known = connection.scalar(select(table.c.traits).where(meant).with_for_update())
            if known is None:
                return False
            traits = orjson.loads(known)
            changed = dump(dict(change(dict(traits))))
            if changed != known:
                connection.execute(update(table).where(meant).values({table.c.traits: changed}))
            return True

        return await self._database.write(work)

    async def touch_model(self, name: str) -> None:
        """Note that a checkpoint was used now."""
        await self._touch(models, name)

    async def loras(self) -> list[LoraRow]:
        """Every LoRA, by name and version."""
        return await self._all(loras, LoraRow)

    async def lora(self, name: str, version: str | None = None) -> LoraRow | None:
        """One LoRA, by default its last added version."""
        return await self._one(loras, LoraRow, name, version)

    async def add_lora(self, row: LoraRow) -> None:
        """Add a LoRA, or replace the facts about this name and version."""
        await self._add(loras, row)

    async def touch_lora(self, name: str) -> None:
        """Note that a LoRA was used now."""
        await self._touch(loras, name)

    async def remove_model(self, name: str, version: str | None = None) -> list[ModelRow]:
        """Forget a checkpoint, all its versions or one; what was forgotten."""
        return await self._remove(models, ModelRow, name, version)

    async def remove_lora(self, name: str, version: str | None = None) -> list[LoraRow]:
        """Forget a LoRA, all its versions or one; what was forgotten."""
        return await self._remove(loras, LoraRow, name, version)

    async def _remove(self, table: Table, kind: type[W], name: str, version: str | None) -> list[W]:
        meant = table.c.name == name if version is None else (table.c.name == name) & (table.c.version == version)

        def work(connection: Connection) -> list[Row[Any]]:
            rows = list(connection.execute(select(table).where(meant)).all())
            connection.execute(delete(table).where(meant))
            return rows

        return [_weights(kind, row) for row in await self._database.write(work)]

    async def _all(self, table: Table, kind: type[W]) -> list[W]:
        ordered = select(table).order_by(table.c.name, table.c.version)
        rows = await self._database.read(lambda connection: connection.execute(ordered).all())
        return [_weights(kind, row) for row in rows]

    async def _one(self, table: Table, kind: type[W], name: str, version: str | None) -> W | None:
        c = table.c
        newest = select(table).where(c.name == name).order_by(c.added_at.desc(), c.version.desc()).limit(1)
        if version is not None:
            newest = newest.where(c.version == version)
        row = await self._database.read(lambda connection: connection.execute(newest).first())
        return None if row is None else _weights(kind, row)

    async def _add(self, table: Table, row: ModelRow | LoraRow) -> None:
        c = table.c
        facts: dict[Any, Any] = {
            c.family: row.family,
            c.source: row.source,
            c.path: row.path,
            c.digest: row.digest,
            c.size: row.size,
            c.traits: dump(row.traits),
        }

        def work(connection: Connection) -> None:
            known = select(c.name).where(c.name == row.name, c.version == row.version).with_for_update()
            if connection.scalar(known) is not None:
                connection.execute(update(table).where(c.name == row.name, c.version == row.version).values(facts))
                return
            new = {c.name: row.name, c.version: row.version, c.added_at: now_ms(), c.last_used_at: row.last_used_at}
            connection.execute(insert(table).values({**new, **facts}))

        try:
            await self._database.write(work)
        except IntegrityError:  # somebody else inserted it in between: now it is there to be updated
            await self._database.write(work)

    async def _touch(self, table: Table, name: str) -> None:
        used = update(table).where(table.c.name == name).values({table.c.last_used_at: now_ms()})
        await self._database.write(lambda connection: connection.execute(used).rowcount)


def _weights(kind: type[W], row: Row[Any]) -> W:
    """A row of either table as a value."""
    return kind(
        row.name,
        row.version,
        row.family,
        row.source,
        row.path,
        row.digest,
        row.size,
        orjson.loads(row.traits),
        row.last_used_at,
    )
