"""What the tests of the database, the worker and the API start, for tests of what is listed and replayed."""

from __future__ import annotations

from tests.agents.conftest import start
from tests.db.conftest import claims, database, delivery, registry, tasks, upgraded_file, upgraded_server
from tests.web.conftest import api, serve
from tests.worker.conftest import bench

__all__ = [
    "api",
    "bench",
    "claims",
    "database",
    "delivery",
    "registry",
    "serve",
    "start",
    "tasks",
    "upgraded_file",
    "upgraded_server",
]
