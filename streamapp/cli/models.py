"""What can be drawn with (models, LoRAs, learned words, ControlNets), and how a file joins it; see also ``fetch.py``.

Lists come from the running service, or, where none answers, from the database of the settings; adding works on that
database and needs no running service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamapp.cli.components import add_components
from streamapp.cli.connect import json_option, open_client, print_json, print_rows, url_option
from streamapp.cli.fetch import add_commands, add_pins
from streamapp.cli.registry import with_registry

if TYPE_CHECKING:
    from streamapp.db import LoraRow, ModelRow, Registry
    from streamapp.settings import Settings


@click.group(invoke_without_command=True)
@url_option
@json_option
@click.pass_context
def models(ctx: click.Context, url: str | None, as_json: bool) -> None:
    """List the models, add or fetch one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_models, url=url, as_json=as_json)


@click.group(invoke_without_command=True)
@url_option
@json_option
@click.pass_context
def loras(ctx: click.Context, url: str | None, as_json: bool) -> None:
    """List the LoRAs, add or fetch one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_loras, url=url, as_json=as_json)


@models.command("list")
@url_option
@json_option
def list_models(url: str | None, as_json: bool) -> None:
    """List the models."""
    rows = _served("models", url)
    _print(_registered(lambda registry: registry.models()) if rows is None else rows, as_json)


@loras.command("list")
@url_option
@json_option
def list_loras(url: str | None, as_json: bool) -> None:
    """List the LoRAs."""
    rows = _served("loras", url)
    _print(_registered(lambda registry: registry.loras()) if rows is None else rows, as_json)


@click.group(invoke_without_command=True)
@url_option
@json_option
@click.pass_context
def embeddings(ctx: click.Context, url: str | None, as_json: bool) -> None:
    """List the learned words (textual inversion), or add one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_embeddings, url=url, as_json=as_json)


@embeddings.command("list")
@url_option
@json_option
def list_embeddings(url: str | None, as_json: bool) -> None:
    """List the learned words."""
    rows = _served("embeddings", url)
    _print(_registered(lambda registry: registry.loras(), "embedding") if rows is None else rows, as_json)


@click.group(invoke_without_command=True)
@url_option
@json_option
@click.pass_context
def controlnets(ctx: click.Context, url: str | None, as_json: bool) -> None:
    """List the ControlNets, add or fetch one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_controlnets, url=url, as_json=as_json)


@controlnets.command("list")
@url_option
@json_option
def list_controlnets(url: str | None, as_json: bool) -> None:
    """List the ControlNets."""
    rows = _served("controlnets", url)
    _print(_registered(lambda registry: registry.loras(), "controlnet") if rows is None else rows, as_json)


FILE = click.Path(path_type=Path, exists=True)


@models.command("add")
@click.argument("name")
@click.argument("path", type=FILE)
@click.option("--family", required=True, help="Architecture of the weights, such as sd15.")
@json_option
def add_model(name: str, path: Path, family: str, as_json: bool) -> None:
    """Register the weights at PATH (.safetensors or a diffusers folder) as model NAME.

    A file outside the data folder is linked into it.
    """
    _add(name, path, "model", family, as_json)


@loras.command("add")
@click.argument("name")
@click.argument("path", type=FILE)
@click.option("--family", required=True, help="Family of the models that it fits, such as sd15.")
@json_option
def add_lora(name: str, path: Path, family: str, as_json: bool) -> None:
    """Register the LoRA at PATH (.safetensors) as NAME."""
    _add(name, path, "lora", family, as_json)


@embeddings.command("add")
@click.argument("name")
@click.argument("path", type=FILE)
@click.option("--family", required=True, help="Family of the models that it fits, such as sd15.")
@json_option
def add_embedding(name: str, path: Path, family: str, as_json: bool) -> None:
    """Register the textual inversion at PATH (.safetensors); prompts use it by writing NAME."""
    _add(name, path, "embedding", family, as_json)


@controlnets.command("add")
@click.argument("name")
@click.argument("path", type=FILE)
@click.option("--family", required=True, help="Family of the models that it steers, such as sd15.")
@json_option
def add_controlnet(name: str, path: Path, family: str, as_json: bool) -> None:
    """Register the ControlNet at PATH (.safetensors, or diffusers' folder with its config.json) as NAME."""
    _add(name, path, "controlnet", family, as_json)


@embeddings.command("remove")
@click.argument("name")
def remove_embedding(name: str) -> None:
    """Forget the learned word NAME; its file stays. Prompts that hold it mean the ordinary word again."""
    from streamapp.errors import NotFound
    from streamapp.models.learned import is_embedding

    async def remove(registry: Registry) -> None:
        row = await registry.lora(name)
        if row is None or not is_embedding(row):
            raise NotFound(f"{name} is no learned word here", name=name)
        await registry.remove_lora(name)

    with_registry(lambda registry, _: remove(registry))
    click.echo(f"{name} forgotten")


def _served(kind: str, url: str | None) -> list[dict[str, Any]] | None:
    """What the running service offers; ``None`` when none answers and none was named."""
    from streamapp.client import Unreachable

    async def ask() -> list[dict[str, Any]]:
        async with open_client(url) as client:
            return list((await client.models())[kind])

    try:
        return asyncio.run(ask())
    except Unreachable:
        if url:
            raise
        return None


def _registered(ask: Callable[[Registry], Awaitable[list[Any]]], mark: str | None = None) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from streamapp.models.learned import KIND

    rows = with_registry(lambda registry, _: ask(registry))
    return [{**asdict(row), **_marks(row.traits)} for row in rows if row.traits.get(KIND) == mark]


def _marks(traits: Mapping[str, Any]) -> dict[str, Any]:
    """What a running service says beside the facts, from the registry alone."""
    reason, marks = traits.get("quarantined"), ("pending", "evicted")
    state = next((mark for mark in marks if traits.get(mark)), "quarantined" if reason else "registered")
    return {"state": state, "quarantined": reason}


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    shown = [
        (row["name"], row["version"], row["family"], f"{row['size'] / 1e6:.1f} MB", row.get("state", ""))
        for row in rows
    ]
    print_rows(("NAME", "VERSION", "FAMILY", "SIZE", "STATE"), shown)
    for row in rows:
        if (facts := row.get("quarantined")) and row.get("state") == "quarantined":
            click.echo(f"{row['name']} failed to load {facts['failures']} times: {facts['message']}", err=True)


def _add(name: str, path: Path, kind: str, family: str, as_json: bool) -> None:
    from dataclasses import asdict

    row = with_registry(lambda registry, settings: _added(registry, settings, name, path, kind, family))
    if as_json:
        print_json(asdict(row))
    else:
        click.echo(f"{row.name} ({row.family}, sha256 {row.digest[:12]}) from {path}")


async def _added(
    registry: Registry, settings: Settings, name: str, path: Path, kind: str, family: str
) -> ModelRow | LoraRow:
    from streamapp.db import Delivery
    from streamapp.models.catalogue import add_file, place_of
    from streamapp.models.shared import open_shared

    row = await add_file(registry, settings, name, path, kind, family)
    async with open_shared(settings, Delivery(registry.database)) as shared:
        if shared is not None and row.path.endswith(".safetensors"):
            await shared.give(place_of(row, settings), row.digest)
    return row


add_commands(models, "model")
add_commands(loras, "lora")
add_commands(controlnets, "controlnet")
add_pins(models, "model")
add_pins(loras, "lora")
add_pins(controlnets, "controlnet")
add_components(models)
