"""``models`` and ``loras``: what can be drawn with, and how a local file joins it.

Both work on the registry in the database of the settings and need no running service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamapp.cli.connect import json_option, print_json, print_rows

if TYPE_CHECKING:
    from streamapp.db import Registry
    from streamapp.settings import Settings

R = TypeVar("R")


@click.group(invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context) -> None:
    """List the models, or add one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_models, as_json=False)


@click.group(invoke_without_command=True)
@click.pass_context
def loras(ctx: click.Context) -> None:
    """List the LoRAs, or add one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_loras, as_json=False)


@models.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the registered models."""
    _print(_with_registry(lambda registry, _: registry.models()), as_json)


@loras.command("list")
@json_option
def list_loras(as_json: bool) -> None:
    """List the registered LoRAs."""
    _print(_with_registry(lambda registry, _: registry.loras()), as_json)


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


def _print(rows: list[Any], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json([asdict(row) for row in rows])
        return
    shown = [(row.name, row.version, row.family, row.source, f"{row.size / 1e6:.1f} MB") for row in rows]
    print_rows(("NAME", "VERSION", "FAMILY", "SOURCE", "SIZE"), shown)


def _add(name: str, path: Path, kind: str, family: str, as_json: bool) -> None:
    from dataclasses import asdict

    from streamapp.models.catalogue import add_file

    row = _with_registry(lambda registry, settings: add_file(registry, settings, name, path, kind, family))
    if as_json:
        print_json(asdict(row))
    else:
        click.echo(f"{row.name} ({row.family}, sha256 {row.digest[:12]}) from {path}")


def _with_registry(work: Callable[[Registry, Settings], Awaitable[R]]) -> R:
    """Run ``work`` over the registry; on a laptop, where nobody runs ``db upgrade``, that comes first."""
    from streamapp.cli.operate import prepare
    from streamapp.db import Registry, open_database
    from streamapp.settings import load_settings

    async def run() -> R:
        settings = load_settings()
        if settings.embedded:
            await prepare(settings)
        database = open_database(settings.database_url)
        await database.start()
        try:
            return await work(Registry(database), settings)
        finally:
            await database.close()

    return asyncio.run(run())
