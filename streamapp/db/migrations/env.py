"""Alembic's environment: over the connection that :func:`streamapp.db.upgrade` hands in, or its own for the CLI."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from streamapp.db.schema import metadata


def run(connection: Connection) -> None:
    """Run the migrations over ``connection``."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=connection.dialect.name != "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect() -> None:
    """Open the database of ``alembic -x url=…`` (for writing new migrations)."""
    engine = create_async_engine(context.get_x_argument(as_dictionary=True)["url"])
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(connect())
else:
    run(given)
