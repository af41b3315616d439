"""``models|loras|controlnets pull, verify, warm, release, pin, unpin, remove``: weights from elsewhere, and away."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import click

from streamapp.cli.connect import json_option, print_json, print_rows, url_option
from streamapp.cli.registry import with_registry

if TYPE_CHECKING:
    from streamapp.db import LoraRow, ModelRow, Registry
    from streamapp.models.fetching import Fetches
    from streamapp.settings import Settings

Kind = Literal["model", "lora", "controlnet"]
#: Of weights that are not what was registered.
CHANGED = "changed"


def add_commands(group: click.Group, kind: Kind) -> None:
    """Give ``models``, ``loras`` or ``controlnets`` these commands."""

    @group.command("pull")
    @click.argument("reference")
    @click.option("--name", help="Local name; without it that of its page.")
    @json_option
    def pull(reference: str, name: str | None, as_json: bool) -> None:
        """Fetch REFERENCE: civitai:MODEL@VERSION, an address of Civitai or the Hub, OWNER/NAME[:FILE], AIR or SHA-256.

        What is interrupted goes on where it was. Model, LoRA or ControlNet: what it is, it is registered as.
        """
        row = with_registry(lambda registry, settings: _pull(registry, settings, reference, name))
        if as_json:
            print_json(asdict(row))
        else:
            click.echo(f"{row.name} ({row.family}, {row.size / 1e6:.1f} MB, sha256 {row.digest[:12]}) is registered")

    @group.command("verify")
    @click.argument("names", nargs=-1)
    @click.option("--no-fetch", is_flag=True, help="Only say what has changed.")
    @json_option
    def verify(names: tuple[str, ...], no_fetch: bool, as_json: bool) -> None:
        """Read every byte of NAMES, or of everything, and compare digests; exit 1 on a difference that stays.

        What has changed is fetched again from the fleet or its publisher. What is right leaves its quarantine.
        """
        checked = with_registry(lambda registry, settings: _verify(registry, settings, kind, names, fetch=not no_fetch))
        if as_json:
            print_json(checked)
        else:
            print_rows(("NAME", "VERSION", "STATE"), [(one["name"], one["version"], one["state"]) for one in checked])
        if any(not one["state"].startswith("ok") for one in checked):
            sys.exit(1)

    @group.command("remove")
    @click.argument("name")
    @click.option("--version", help="Only this version; without it all.")
    @click.option("--keep-files", is_flag=True, help="Forget it, but leave its files.")
    @json_option
    def remove(name: str, version: str | None, keep_files: bool, as_json: bool) -> None:
        """Forget NAME and delete its files, unless another name uses them."""
        gone = with_registry(lambda registry, settings: _remove(registry, settings, kind, name, version, keep_files))
        if as_json:
            print_json(gone)
            return
        for one in gone:
            click.echo(f"{one['name']} {one['version']}: {one['freed'] / 1e6:.1f} MB freed")


def add_pins(group: click.Group, kind: Kind) -> None:
    """Give ``models``, ``loras`` or ``controlnets`` the commands that keep something on the disk."""

    @group.command("pin")
    @click.argument("name")
    def pin(name: str) -> None:
        """Never delete NAME to make room for others."""
        with_registry(lambda registry, _: _pin(registry, kind, name, pinned=True))

    @group.command("unpin")
    @click.argument("name")
    def unpin(name: str) -> None:
        """Let NAME make room again."""
        with_registry(lambda registry, _: _pin(registry, kind, name, pinned=False))

    @group.command("warm")
    @click.argument("names", nargs=-1, required=True)
    @url_option
    def warm(names: tuple[str, ...], url: str | None) -> None:
        """Have NAMES fetched and loaded by a running worker before anybody asks for them."""
        for name in names:
            click.echo(f"{name} is ready, after {asyncio.run(_warm(kind, name, url)):.1f} s")

    @group.command("release")
    @click.argument("name")
    def release(name: str) -> None:
        """Let NAME be drawn with again that failed to load too often."""
        was = with_registry(lambda registry, _: _release(registry, kind, name))
        click.echo(f"{name} {'is released' if was else 'was not in quarantine'}")


async def _warm(kind: Kind, name: str, url: str | None) -> float:
    """Ask until it is ready; the seconds that the service says it took."""
    from streamapp.cli.connect import open_client

    async with open_client(url, timeout_s=60.0) as client:
        while True:
            answer = await client.call("POST", f"/api/v1/{kind}s/{name}/warm")
            if answer["state"] == "ready":
                return float(answer["seconds"])


async def _release(registry: Registry, kind: Kind, name: str) -> bool:
    from streamapp.models.quarantine import release

    return any([await release(registry, row) for row in await _named(registry, kind, name)])


async def _rows(registry: Registry, kind: Kind) -> list[Any]:
    """Everything of a kind; a learned word counts as a LoRA."""
    from streamapp.models.cache import kind_of

    rows: list[Any] = list(await (registry.models() if kind == "model" else registry.loras()))
    return [row for row in rows if kind_of(row) == kind]


async def _named(registry: Registry, kind: Kind, name: str) -> list[Any]:
    from streamapp.errors import NotFound

    rows = await _rows(registry, kind)
    if not (found := [row for row in rows if row.name == name]):
        raise NotFound(f"{name} is not registered here", name=name)
    return found


async def _pull(registry: Registry, settings: Settings, reference: str, name: str | None) -> ModelRow | LoraRow:
    async with _fetches(registry, settings) as fetches:
        with _bar(reference) as seen:
            return await fetches.once(reference, name, seen)


@asynccontextmanager
async def _fetches(registry: Registry, settings: Settings) -> AsyncIterator[Fetches]:
    from streamapp.db import Delivery, Tasks
    from streamapp.models.cache import DiskCache
    from streamapp.models.fetching import Fetches
    from streamapp.models.shared import open_shared

    resident = await _resident()
    async with open_shared(settings, Delivery(registry.database)) as shared:
        cache = DiskCache(
            settings,
            registry,
            wanted=Tasks(registry.database).naming,
            resident=lambda: resident,
            elsewhere=None if shared is None else shared.has,
        )
        fetches = Fetches(settings, registry, cache, shared=shared)
        try:
            yield fetches
        finally:
            await fetches.close()


async def _resident() -> set[tuple[Kind, str]]:
    """What the workers of a running service hold in memory; nothing where none runs."""
    from streamapp.cli.connect import open_client
    from streamapp.errors import AppError
    from streamapp.models.cache import in_memory

    try:
        async with open_client(None, timeout_s=3.0) as client:
            return in_memory((await client.status())["lora_state"].values())
    except AppError:
        return set()


async def _pin(registry: Registry, kind: Kind, name: str, *, pinned: bool) -> None:
    from streamapp.models.cache import PINNED

    def change(traits: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in traits.items() if key != PINNED}
        return {**rest, PINNED: True} if pinned else rest

    for row in await _named(registry, kind, name):
        await registry.edit(row, change)


class _bar:  # noqa: N801 - used as a function
    """A progress bar in bytes, on a terminal only."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __enter__(self) -> Callable[[int, int | None], None]:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            desc=self._title[:40], unit="B", unit_scale=True, unit_divisor=1000, disable=None, file=sys.stderr
        )

        def seen(here: int, total: int | None) -> None:
            self._bar.total = total
            self._bar.n = here
            self._bar.refresh()

        return seen

    def __exit__(self, *_: object) -> None:
        self._bar.close()


async def _verify(
    registry: Registry, settings: Settings, kind: Kind, names: tuple[str, ...], *, fetch: bool
) -> list[dict[str, Any]]:
    from streamapp.errors import NotFound

    rows = await _rows(registry, kind)
    if missing := sorted(set(names) - {row.name for row in rows}):
        raise NotFound(f"{missing[0]} is not registered here", name=missing[0])
    named = [row for row in rows if not names or row.name in names]
    states = [await _state(registry, settings, row) for row in named]
    if fetch and CHANGED in states:
        async with _fetches(registry, settings) as fetches:
            for at, row in enumerate(named):
                if states[at] == CHANGED:
                    states[at] = await _mended(registry, settings, row, fetches)
    return [
        {"name": row.name, "version": row.version, "state": state} for row, state in zip(named, states, strict=True)
    ]


async def _state(registry: Registry, settings: Settings, row: ModelRow | LoraRow) -> str:
    """What every byte of a row's weights says; what is right leaves its quarantine."""
    from streamapp.errors import AppError
    from streamapp.models.catalogue import locate, notes_root
    from streamapp.models.digest import identify
    from streamapp.models.quarantine import release
    from streamapp.models.verified import note_weights

    try:
        path = locate(row, settings)
        if (await asyncio.to_thread(identify, path)).digest != row.digest:
            return CHANGED
        released = await release(registry, row)
        await asyncio.to_thread(note_weights, row, path, notes_root(settings))
    except AppError as error:
        return error.message
    return "ok, released" if released else "ok"


async def _mended(registry: Registry, settings: Settings, row: ModelRow | LoraRow, fetches: Fetches) -> str:
    """The state of what had changed, once it is fetched again."""
    from streamapp.errors import AppError

    try:
        if not await fetches.bring.mended(row):
            return f"{CHANGED}, and nobody here knows where to fetch it again"
    except AppError as error:
        return f"{CHANGED}, and was not fetched again: {error.message}"
    return f"{await _state(registry, settings, row)}, had changed and was fetched again"


async def _remove(
    registry: Registry, settings: Settings, kind: Kind, name: str, version: str | None, keep_files: bool
) -> list[dict[str, Any]]:
    from streamapp.errors import NotFound
    from streamapp.models.cache import lent_paths
    from streamapp.models.catalogue import delete_files

    there = [row for row in await _rows(registry, kind) if row.name == name]
    remove = registry.remove_model if kind == "model" else registry.remove_lora
    gone: list[Any] = list(await remove(name, version)) if there else []
    if not gone:
        raise NotFound(f"{name}{f' {version}' if version else ''} is not registered here", name=name)
    kept: list[Any] = [*await registry.models(), *await registry.loras()]
    used = {row.path for row in kept} | lent_paths(kept)
    return [
        {
            "name": row.name,
            "version": row.version,
            "freed": 0 if keep_files or row.path in used else await asyncio.to_thread(delete_files, row, settings),
        }
        for row in gone
    ]
