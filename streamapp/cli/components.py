"""``models components`` and ``models vocabulary``: what single files of Flux.1 and Stable Diffusion 3 lack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamapp.cli.connect import json_option, print_json, print_rows
from streamapp.cli.registry import with_registry

if TYPE_CHECKING:
    from pathlib import Path

    from streamapp.settings import Settings


def add_components(group: click.Group) -> None:
    """Give ``models`` these commands."""

    @group.command("components")
    @click.argument("name")
    @click.argument("given", nargs=-1, metavar="[vae=MODEL_OR_FILE] [clip_l=…] [clip_g=…] [t5=…]")
    @json_option
    def components(name: str, given: tuple[str, ...], as_json: bool) -> None:
        """Draw the single file NAME with this VAE and these text encoders, where it holds none.

        Each is a registered model or a .safetensors file; ``vae=`` takes the VAE off the list. Without any, print it.
        """
        from streamapp.models.components import name_components

        pairs = dict(each.partition("=")[::2] for each in given)
        found = with_registry(lambda registry, settings: name_components(registry, settings, name, pairs))
        if as_json:
            print_json(found)
        else:
            rows = [(part, entry.get("name") or entry["path"], entry["digest"][:12]) for part, entry in found.items()]
            print_rows(("COMPONENT", "FROM", "SHA256"), rows)

    @group.command("vocabulary")
    def vocabulary() -> None:
        """Fetch T5's vocabulary (0.8 MB), which single files of Flux.1 and Stable Diffusion 3 need; verified, once."""
        path = with_registry(lambda _, settings: _fetched(settings))
        click.echo(f"T5's vocabulary is at {path}")


async def _fetched(settings: Settings) -> Path:
    from streamapp.models.components import fetch_vocabulary
    from streamapp.models.pull import open_sites

    async with open_sites(settings) as sites:
        return (await fetch_vocabulary(sites.downloader, settings)).path
