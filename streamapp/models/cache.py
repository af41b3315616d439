"""The disk budget of fetched weights: what nobody needs makes room for what is wanted now.

Only weights that can be fetched again are ever deleted. Their rows stay, marked with the trait ``evicted``, so that a
later pull by their name brings them back.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from streamapp.db.rows import EVICTED, LoraRow, ModelRow
from streamapp.errors import AppError
from streamapp.models.catalogue import LOCAL, delete_files, locate, models_root, notes_root
from streamapp.models.download import NoSpace
from streamapp.models.partial import arriving_bytes
from streamapp.models.steering import is_controlnet
from streamapp.models.verified import used_at
from streamapp.settings import Settings
from streamapp.telemetry import get_logger

log = get_logger(__name__)
Row = ModelRow | LoraRow
Kind = Literal["model", "lora", "controlnet"]
#: Traits of a row: never evicted; what a pull was asked for.
PINNED, PULLED_FROM = "pinned", "pulled_from"
__all__ = ["EVICTED", "PINNED", "PULLED_FROM", "DiskCache", "Held", "Kind", "Resident", "Rows", "Wanted"]
__all__ += ["in_memory", "kind_of", "lent_paths", "mark", "marked", "save"]


class Rows(Protocol):
    """The part of the registry that this module reads and writes."""

    async def models(self) -> list[ModelRow]:
        """Every checkpoint."""

    async def loras(self) -> list[LoraRow]:
        """Every LoRA."""

    async def add_model(self, row: ModelRow) -> None:
        """Insert or replace by name and version."""

    async def add_lora(self, row: LoraRow) -> None:
        """Insert or replace by name and version."""

    async def edit(self, row: Row, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> bool:
        """Change the traits of a row as they are at this moment; ``False`` when it is gone."""


#: Whether a queued or running task names a model or LoRA.
Wanted = Callable[[Kind, str], Awaitable[bool]]
#: Names of models and LoRAs that workers hold in memory, as far as this process knows.
Resident = Callable[[], Collection[tuple[Kind, str]]]
#: Whether other hosts can give a file back to this one.
Elsewhere = Callable[[Row], Awaitable[bool]]


def kind_of(row: Row) -> Kind:
    """What commands and addresses call what a row is; a learned word counts as a LoRA."""
    if is_controlnet(row):
        return "controlnet"
    return "lora" if isinstance(row, LoraRow) else "model"


def _known_as(row: Row) -> tuple[Kind, str]:
    """How workers' states name it: LoRAs and ControlNets, which never have one name, stand together."""
    return ("lora" if isinstance(row, LoraRow) else "model"), row.name


def in_memory(states: Collection[Mapping[str, Mapping[str, str]]]) -> set[tuple[Kind, str]]:
    """What workers hold in memory, from what each says of its ``checkpoints`` and ``loras`` (name to tier)."""
    found: set[tuple[Kind, str]] = set()
    for state in states:
        found |= {("model", name) for name, tier in state["checkpoints"].items() if tier != "disk"}
        found |= {("lora", name) for name, tier in state["loras"].items() if tier != "disk"}
    return found


async def save(registry: Rows, row: Row) -> None:
    """Write a row to its table."""
    await (registry.add_lora(row) if isinstance(row, LoraRow) else registry.add_model(row))


def marked(row: Row, trait: str, value: bool) -> Row:
    """The row with a trait set, or without it."""
    return replace(row, traits=_marked(row.traits, trait, value))


async def mark(registry: Rows, row: Row, trait: str, value: bool) -> None:
    """Set a trait of a registered row, or take it away; what others have noted meanwhile stays."""
    await registry.edit(row, lambda traits: _marked(traits, trait, value))


def _marked(traits: Mapping[str, Any], trait: str, value: bool) -> dict[str, Any]:
    rest = {name: kept for name, kept in traits.items() if name != trait}
    return {**rest, trait: True} if value else rest


@dataclass(frozen=True, slots=True)
class Held:
    """One file or folder on the disk, the rows that share it, its bytes, and when it was last used (ms).

    ``lent``: another model takes a text encoder or its VAE from it.
    """

    path: Path
    rows: tuple[Row, ...]
    size: int
    used_at: int
    lent: bool = False

    @property
    def expendable(self) -> bool:
        """Whether it can be fetched again, under each of its names, is not lent, and nobody pinned it."""
        return not self.lent and all(row.traits.get(PULLED_FROM) and not row.traits.get(PINNED) for row in self.rows)


class DiskCache:
    """Keeps what lies in the models folder within ``models_max_bytes``; without that setting it evicts nothing.

    ``elsewhere`` says whether a host that lacks a file gets it from the others: then it goes from this disk alone, and
    its row stays as it is.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Rows,
        *,
        wanted: Wanted,
        resident: Resident = lambda: (),
        changed: Callable[[], None] = lambda: None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._settings, self._registry = settings, registry
        self._wanted, self._resident, self._changed, self._elsewhere = wanted, resident, changed, elsewhere
        self._lock = asyncio.Lock()
        self._promised: dict[object, tuple[int, Path | None]] = {}

    async def reserve(self, holder: object, size: int, *, target: Path | None = None) -> list[Row]:
        """Make room for ``size`` bytes and keep it for ``holder`` until :meth:`release`; the rows that were evicted.

        ``target`` is where they will lie: what has arrived of them already needs no room of its own.

        Raises:
            NoSpace: what may be evicted does not suffice; nothing was evicted then.
        """
        limit = self._settings.models_max_bytes
        if limit is None:
            return []
        async with self._lock:
            held = await self._held()
            others = {of: promise for of, promise in self._promised.items() if of != holder}
            targets = (target, *(path for _, path in others.values()))
            known = {path for path in targets if path is not None}
            arriving = await asyncio.to_thread(arriving_bytes, models_root(self._settings), known)
            used = sum(one.size for one in held) + sum(promised for promised, _ in others.values()) + arriving
            evicted: list[Row] = []
            if used + size > limit:
                for one in await self._choose(held, used + size - limit, size):
                    evicted += await self._evict(one)
            self._promised[holder] = (size, target)
            return evicted

    def release(self, holder: object) -> None:
        """What was reserved is on the disk by now, or will not come."""
        self._promised.pop(holder, None)

    async def _choose(self, held: Sequence[Held], missing: int, size: int) -> list[Held]:
        """The least recently used that may go, until ``missing`` bytes are free."""
        resident, chosen, freed = set(self._resident()), [], 0
        for one in sorted(held, key=lambda item: item.used_at):
            if freed >= missing:
                break
            if not one.expendable or any(_known_as(row) in resident for row in one.rows):
                continue
            if not await self._named(one):
                chosen.append(one)
                freed += one.size
        if freed < missing:
            raise NoSpace(
                f"{size / 1e6:.1f} MB do not fit: the models folder may hold "
                f"{(self._settings.models_max_bytes or 0) / 1e6:.1f} MB (STREAMAPP_MODELS_MAX_BYTES), and what "
                "else lies there is pinned, in use, waited for or cannot be fetched again",
                needed=size,
                missing=missing - freed,
            )
        return chosen

    async def _named(self, one: Held) -> bool:
        for row in one.rows:
            if await self._wanted(kind_of(row), row.name):
                return True
        return False

    async def _evict(self, one: Held) -> list[Row]:
        """Mark first, so that no new task can name it, then look whether one just did, then delete."""
        if self._elsewhere is None or not await self._elsewhere(one.rows[0]):
            for row in one.rows:
                await mark(self._registry, row, EVICTED, value=True)
            self._changed()
            if await self._named(one):
                for row in one.rows:
                    await mark(self._registry, row, EVICTED, value=False)
                return []
        await asyncio.to_thread(delete_files, one.rows[0], self._settings)
        log.info(
            "weights made room", action="evicted", names=[row.name for row in one.rows], bytes=one.size
        )  # fmt: skip
        return list(one.rows)

    async def _held(self) -> list[Held]:
        rows: list[Row] = [*await self._registry.models(), *await self._registry.loras()]
        return await asyncio.to_thread(_on_disk, rows, self._settings)


def lent_paths(rows: Iterable[Row]) -> set[str]:
    """Paths below the models folder of what single files are drawn with: their VAE and text encoders."""
    listed = (row.traits.get("components") for row in rows if isinstance(row, ModelRow))
    return {str(entry["path"]) for components in listed if components for entry in components.values()}


def _on_disk(rows: Sequence[Row], settings: Settings) -> list[Held]:
    """What the rows have in the models folder; ``used_at`` of what was never used is when it came.

    What was noted on this host counts before what the row says, which is when any host used it.
    """
    notes = notes_root(settings)
    by_path: dict[Path, list[Row]] = defaultdict(list)
    lent = lent_paths(rows)
    for row in rows:
        if row.source != LOCAL:
            continue
        try:
            by_path[locate(row, settings)].append(row)
        except AppError:  # evicted, or not on this machine
            continue
    return [
        Held(
            path,
            tuple(sharing),
            max(row.size for row in sharing),
            used_at(path, notes) or max(int(path.stat().st_mtime * 1000), *(row.last_used_at or 0 for row in sharing)),
            any(row.path in lent for row in sharing),
        )
        for path, sharing in by_path.items()
    ]
