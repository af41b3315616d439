"""The registry for commands that need no running service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from streamapp.db import Registry
    from streamapp.settings import Settings

R = TypeVar("R")


def with_registry(work: Callable[[Registry, Settings], Awaitable[R]]) -> R:
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
