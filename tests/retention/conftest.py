"""Both databases, and a storage that counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamapp.db import Database, Delivery, Inputs, Retention
from streamapp.retention import Purger
from streamapp.storage import LocalStorage
from tests.db.conftest import claims, database, delivery, tasks, upgraded_file, upgraded_server

__all__ = ["claims", "database", "delivery", "tasks", "upgraded_file", "upgraded_server"]

#: How long the tests keep ended tasks, in seconds.
KEEP = 3600.0


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[LocalStorage]:
    """A storage in a folder."""
    storage = LocalStorage(tmp_path / "files")
    await storage.start()
    yield storage
    await storage.close()


@pytest.fixture
def purger(database: Database, delivery: Delivery, storage: LocalStorage) -> Purger:
    """Keeps for an hour."""
    return Purger(Retention(database), Inputs(database), storage, delivery, KEEP, "p1")
