"""Tiny checkpoints and engines that the tests of families share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamapp.engine import Engine
from tests.engine import tiny


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sdxl")
    return tiny.sdxl(folder), folder


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sd15")
    return tiny.sd(folder), folder


@pytest.fixture
def load() -> Any:
    """Engines with one checkpoint named m, closed at the end; a given cap: no clock decides who joins."""
    engines: list[Engine] = []

    def made(folder: Path, family: str, variant: str | None = None) -> Engine:
        engine = Engine(max_batch_rows=32)
        engine.load("m", folder, family, variant)
        engines.append(engine)
        return engine

    yield made
    for engine in engines:
        engine.close()
