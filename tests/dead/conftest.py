"""The databases of tests/db, for tests of what is listed and replayed."""

from __future__ import annotations

from tests.db.conftest import claims, database, delivery, registry, tasks, upgraded_file, upgraded_server

__all__ = ["claims", "database", "delivery", "registry", "tasks", "upgraded_file", "upgraded_server"]
