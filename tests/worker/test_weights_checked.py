"""The worker loads no weights that are not what their row says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamapp.db import ModelRow
from streamapp.models.digest import identify
from streamapp.settings import Settings
from streamapp.worker.engine import EngineDrawing, open_drawing
from streamapp.worker.loading import LoadFailed
from tests.models.publisher import checkpoint


@pytest.fixture
async def drawing(tmp_path: Path) -> AsyncIterator[EngineDrawing]:
    drawing = open_drawing(Settings(data_dir=tmp_path, engine="fake", verify="always"))
    assert isinstance(drawing, EngineDrawing)
    await drawing.start()
    yield drawing
    await drawing.close()


async def test_a_corrupt_byte_is_caught_before_the_first_picture(drawing: EngineDrawing, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(checkpoint(200_000))
    digest, size = identify(path)
    row = ModelRow(
        name="dream", version=digest[:10], family="sd15", source="file:", path=path.name, digest=digest, size=size
    )
    await drawing.warm(row, path)
    assert drawing.checkpoints == {"dream": "vram"}
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    other = path.with_name("damaged.safetensors")
    other.write_bytes(data)
    with pytest.raises(LoadFailed, match="dream: its file has sha256") as caught:
        await drawing.warm(row, other)
    assert (caught.value.code, caught.value.retryable, caught.value.row) == ("damaged_weights", False, row)
    assert drawing.checkpoints == {"dream": "vram"}
