"""``up``, ``worker`` and ``web``: the three roles of a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from streamapp.errors import ConfigError


@click.command()
@click.option("--host", help="Address to bind to.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the API; 0 takes a free one.")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder for everything kept.")
def up(**given: Any) -> None:
    """Run everything in one process, on one machine.

    API, agents, one GPU worker and (with embedded://) the broker.

    Needs no server, no GPU and no download. Ctrl-C drains and stops.
    """
    _run("up", given)


@click.command()
@click.option("--families", help="Families to serve, separated by commas.")
@click.option("--device", help="Where the engine computes: cpu, cuda:0 …")
@click.option("--worker-id", help="Name of this worker; must differ from every other.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of this worker's own views; 0 takes a free one.")
def worker(**given: Any) -> None:
    """Run one GPU worker: agents and engine. Start as many as there are GPUs; they share the work.

    Needs a kafka:// broker, and a database and storage that every process reaches.
    """
    _run("worker", given)


@click.command()
@click.option("--host", help="Address to bind to.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the API.")
def web(**given: Any) -> None:
    """Run API, views and delivery, but no engine. Several may run behind one load balancer."""
    _run("web", given)


def _run(role: Literal["up", "worker", "web"], given: dict[str, Any]) -> None:
    from streamapp.settings import load_settings

    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    if role != "up" and settings.embedded:
        raise ConfigError(
            f"`streamapp {role}` needs a broker that several processes can share, and embedded:// lives in one: "
            "set STREAMAPP_BROKER=kafka://host:port, or run everything with `streamapp up`"
        )
    from streamapp.run import run_app
    from streamapp.telemetry import configure_logging

    configure_logging(settings)
    run_app(settings, role)
