"""``status``, ``topics``, ``db``, ``settings`` and ``doctor``: what an operator does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from streamapp.cli.connect import json_option, print_json, print_rows, with_client

if TYPE_CHECKING:
    from streamapp.client import Client
    from streamapp.settings import Settings


@click.command()
@json_option
@with_client
async def status(client: Client, as_json: bool) -> None:
    """Show workers, what waits and what was done lately."""
    body = await client.status()
    if as_json:
        print_json(body)
        return
    rows = [
        (
            row.get("worker_id"),
            row.get("state"),
            row.get("engine"),
            row.get("jobs"),
            row.get("running"),
            row.get("done"),
        )
        for row in body.get("workers") or []
    ]
    print_rows(("WORKER", "STATE", "ENGINE", "JOBS", "DRAWING", "DONE"), rows)
    queue = [
        (model, states.get("queued", 0), states.get("running", 0))
        for model, states in (body.get("queue") or {}).items()
    ]
    click.echo()
    print_rows(("MODEL", "QUEUED", "RUNNING"), queue)


@click.group()
def topics() -> None:
    """Create or list the topics of this service."""


@topics.command("create")
@json_option
def create_topics(as_json: bool) -> None:
    """Create what is missing, with the partitions, replication and retention of the settings."""
    from streamapp.broker.admin import open_admin
    from streamapp.settings import load_settings
    from streamapp.topics import catalogue

    async def create() -> list[str]:
        settings = load_settings()
        admin = open_admin(settings)
        await admin.start()
        try:
            return await admin.create_topics(catalogue(settings))
        finally:
            await admin.close()

    created = asyncio.run(create())
    if as_json:
        print_json({"created": created})
        return
    for name in created:
        click.echo(f"created {name}")
    if not created:
        click.echo("every topic exists already")


@topics.command("list")
@json_option
def list_topics(as_json: bool) -> None:
    """List the topics that the settings ask for, and what the broker has."""
    from streamapp.broker.admin import open_admin
    from streamapp.settings import load_settings
    from streamapp.topics import catalogue

    async def ask() -> list[dict[str, Any]]:
        settings = load_settings()
        admin = open_admin(settings)
        await admin.start()
        try:
            specs = catalogue(settings)
            found = await admin.partitions([spec.name for spec in specs])
        finally:
            await admin.close()
        return [
            {"name": spec.name, "partitions": found.get(spec.name), "wanted": spec.partitions, **dict(spec.config)}
            for spec in specs
        ]

    rows = asyncio.run(ask())
    if as_json:
        print_json(rows)
        return
    shown = [(r["name"], r["wanted"], "missing" if r["partitions"] is None else r["partitions"]) for r in rows]
    print_rows(("TOPIC", "WANTED", "PARTITIONS"), shown)


@click.group()
def db() -> None:
    """Look after the database."""


@db.command("upgrade")
def upgrade_db() -> None:
    """Create or migrate the tables, and register the model that ships; safe to repeat."""
    from streamapp.settings import load_settings
    from streamapp.telemetry import scrub

    settings = load_settings()
    asyncio.run(prepare(settings))
    click.echo(f"{scrub(settings.database_url)} is up to date")


async def prepare(settings: Settings) -> None:
    """Tables of this release with the model that ships; what ``db upgrade`` does."""
    from streamapp.db import Registry, open_database, upgrade
    from streamapp.models.shipped import seed

    await asyncio.to_thread(settings.data_path.mkdir, parents=True, exist_ok=True)
    await upgrade(settings.database_url)
    database = open_database(settings.database_url)
    await database.start()
    try:
        await seed(Registry(database))
    finally:
        await database.close()


@click.command()
@json_option
@click.option("--markdown", is_flag=True, help="Print the reference table of docs/settings.md instead.")
def settings(as_json: bool, markdown: bool) -> None:
    """Show the settings in force, with secrets hidden."""
    from streamapp.cli.reference import effective, reference
    from streamapp.settings import load_settings

    if markdown:
        click.echo(reference(), nl=False)
        return
    values = effective(load_settings())
    if as_json:
        print_json(values)
        return
    for name, (value, given) in values.items():
        click.echo(f"{'*' if given else ' '} {name:<38}{value}")
    click.echo("\n* given by the environment or streamapp.toml; the others are defaults")


@click.command()
@json_option
@click.option("--tests", is_flag=True, help="Also fail when something is missing that only the tests need.")
def doctor(as_json: bool, tests: bool) -> None:
    """Say what is missing and how to get it.

    Checks every dependency: packages, device, broker, topics, database, storage, disk and port.

    Exits 1 when something is missing that the service needs.
    """
    from dataclasses import asdict

    from streamapp.doctor import examine
    from streamapp.settings import load_settings

    checks = asyncio.run(examine(load_settings()))
    bad = [check for check in checks if not check.ok and (check.needed or tests)]
    if as_json:
        print_json({"ok": not bad, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            word = "ok" if check.ok else "missing" if check.needed or tests else "absent"
            click.echo(f"{word:<8}{check.name:<22}{check.found}")
            if check.advice and (not check.ok or check.needed):
                click.echo(f"{'':<30}{check.advice}")
        click.echo(f"\n{len(bad)} of {len(checks)} missing" if bad else "\neverything the service needs is there")
    if bad:
        raise SystemExit(1)
