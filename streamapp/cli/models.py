"""``models`` and ``loras``: what can be drawn with, and how a local file joins it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamapp.cli.connect import json_option, print_json, print_rows, with_client

if TYPE_CHECKING:
    from streamapp.client import Client


@click.group(invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context) -> None:
    """List the models, or add one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_models, url=None, as_json=False)


@click.group(invoke_without_command=True)
@click.pass_context
def loras(ctx: click.Context) -> None:
    """List the LoRAs, or add one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_loras, url=None, as_json=False)


@models.command("list")
@json_option
@with_client
async def list_models(client: Client, as_json: bool) -> None:
    """List the models of the running service."""
    _print(await client.models(), as_json)


@loras.command("list")
@json_option
@with_client
async def list_loras(client: Client, as_json: bool) -> None:
    """List the LoRAs of the running service."""
    _print(await client.loras(), as_json)


FILE = click.Path(path_type=Path, exists=True)


@models.command("add")
@click.argument("name")
@click.argument("path", type=FILE)
@click.option("--family", required=True, help="Architecture of the weights, such as sd15.")
@json_option
def add_model(name: str, path: Path, family: str, as_json: bool) -> None:
    """Register the weights at PATH (.safetensors or a diffusers folder) as model NAME.

    Writes to the database of the settings and needs no running service.
    """
    _add(name, path, "model", family, as_json)


@loras.command("add")
@click.argument("name")
@click.argument("path", type=FILE)
@click.option("--family", required=True, help="Family of the models that it fits, such as sd15.")
@json_option
def add_lora(name: str, path: Path, family: str, as_json: bool) -> None:
    """Register the LoRA at PATH (.safetensors) as NAME; needs no running service."""
    _add(name, path, "lora", family, as_json)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    columns = ("name", "version", "family", "source", "size")
    print_rows(tuple(column.upper() for column in columns), [tuple(row.get(c) for c in columns) for row in rows])


def _add(name: str, path: Path, kind: str, family: str, as_json: bool) -> None:
    from dataclasses import asdict

    from streamapp.db import Registry, open_database, upgrade
    from streamapp.models.catalogue import add_file
    from streamapp.settings import load_settings

    async def add() -> Any:
        settings = load_settings()
        await upgrade(settings.database_url)
        database = open_database(settings.database_url)
        await database.start()
        try:
            return await add_file(Registry(database), settings, name, path, kind, family)
        finally:
            await database.close()

    row = asdict(asyncio.run(add()))
    print_json(row) if as_json else click.echo(f"{row['name']} ({row['family']}, sha256 {row['digest'][:12]})")
