"""What the commands that talk to a running service share: its address, its key, and JSON output."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
import orjson

if TYPE_CHECKING:
    from streamapp.client import Client

url_option = click.option(
    "--url", metavar="URL", help="Address of the service.  [default: http://HOST:PORT of the settings]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script instead of words.")


def with_client(call: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous command with an open client; adds ``--url``.

    Without ``--url`` the address is the one that this machine's service binds to by the same settings; the API
    key is the first of ``STREAMAPP_API_KEYS``.
    """

    @url_option
    @wraps(call)
    def run(*, url: str | None, **given: Any) -> None:
        async def session() -> None:
            async with open_client(url) as client:
                await call(client, **given)

        asyncio.run(session())

    return run


def open_client(url: str | None, *, timeout_s: float = 30.0) -> Client:
    """A client of the service at ``url``, or of the one that the settings of this shell describe."""
    from streamapp.client import Client
    from streamapp.settings import load_settings

    settings = load_settings()
    if url and not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"{url!r} is not an address such as http://127.0.0.1:8000", param_hint="--url")
    # Bound to every address, the service is reached by the loopback one.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
    return Client(url or f"http://{host}:{settings.port}", api_key=key, timeout_s=timeout_s)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str).decode())


def print_rows(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A plain aligned table on stdout."""
    cells = [head, *(tuple("" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
