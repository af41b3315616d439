"""What single files of Flux and Stable Diffusion 3 lack: named by an operator, T5's vocabulary fetched once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer
from safetensors.torch import save_file

from streamapp.db.rows import ModelRow
from streamapp.engine.component_list import list_of, listed
from streamapp.errors import InvalidRequest, NotFound
from streamapp.guarded import GuardedClient
from streamapp.models import components
from streamapp.models.catalogue import add_file, delete_files, locate
from streamapp.models.components import fetch_vocabulary, name_components, vocabulary_path
from streamapp.models.download import Downloader, WrongDigest
from streamapp.models.offer import family_of_base
from streamapp.settings import Settings
from tests.models.publisher import Publisher

FLUX = "double_blocks.0.img_attn.norm.key_norm.scale"


class Registry:
    def __init__(self) -> None:
        self.rows: dict[str, ModelRow] = {}

    async def model(self, name: str, version: str | None = None) -> ModelRow | None:
        del version
        return self.rows.get(name)

    async def add_model(self, row: ModelRow) -> None:
        self.rows[row.name] = row

    async def lora(self, name: str, version: str | None = None) -> None:
        raise AssertionError((name, version))

    add_lora = lora


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", allow_private_sources=True)


def weights(path: Path, *names: str) -> Path:
    save_file({name: torch.full((2,), float(number)) for number, name in enumerate(names)}, path)
    return path


async def test_a_transformer_alone_is_drawn_with_what_is_named(settings: Settings, tmp_path: Path) -> None:
    registry: Any = Registry()
    row = await add_file(registry, settings, "alone", weights(tmp_path / "a.safetensors", FLUX), "model", "flux")
    assert row.traits == {"variant": "schnell", "lacks": ["vae", "clip_l", "t5"]}
    await add_file(registry, settings, "whole", weights(tmp_path / "w.safetensors", FLUX, "vae.x"), "model", "flux")
    vae = weights(tmp_path / "ae.safetensors", "decoder.conv_in.weight")
    found = await name_components(registry, settings, "alone", {"vae": str(vae), "t5": "whole"})
    assert found["vae"]["digest"] == hashlib.sha256(vae.read_bytes()).hexdigest()
    assert found["t5"]["name"] == "whole"
    path = locate(registry.rows["alone"], settings)
    places = listed(path)
    assert places["vae"].read_bytes() == vae.read_bytes()
    assert places["t5"].resolve() == locate(registry.rows["whole"], settings).resolve()
    assert registry.rows["alone"].traits["components"] == found
    assert await name_components(registry, settings, "alone", {"vae": ""}) == {"t5": found["t5"]}
    assert listed(path).keys() == {"t5"}
    delete_files(registry.rows["alone"], settings)
    assert not list_of(path).exists()


async def test_what_is_no_component_is_refused(settings: Settings, tmp_path: Path) -> None:
    registry: Any = Registry()
    await add_file(registry, settings, "alone", weights(tmp_path / "a.safetensors", FLUX), "model", "flux")
    for given, error, says in (
        ({"lungs": "x"}, InvalidRequest, "'lungs' is no component: name vae"),
        ({"vae": str(tmp_path / "none.safetensors")}, NotFound, "neither a registered model nor a file"),
        ({"vae": __file__}, InvalidRequest, "not a .safetensors file"),
    ):
        with pytest.raises(error, match=says):
            await name_components(registry, settings, "alone", given)
    with pytest.raises(NotFound, match="no model 'other'"):
        await name_components(registry, settings, "other", {})


async def test_a_file_of_another_family_is_refused_when_it_is_added(settings: Settings, tmp_path: Path) -> None:
    registry: Any = Registry()
    file = weights(tmp_path / "a.safetensors", FLUX)
    with pytest.raises(InvalidRequest, match="is of family flux, not sd3"):
        await add_file(registry, settings, "x", file, "model", "sd3")
    vae = weights(tmp_path / "v.safetensors", "decoder.conv_in.weight")
    with pytest.raises(InvalidRequest, match=r"holds no Flux\.1 transformer"):
        await add_file(registry, settings, "x", vae, "model", "flux")


async def test_t5s_vocabulary_is_fetched_once_and_verified(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"pieces" * 500
    monkeypatch.setattr(components, "T5_DIGEST", hashlib.sha256(raw).hexdigest())
    monkeypatch.setattr(components, "T5_SIZE", len(raw))
    publisher = Publisher(raw, faults=["drop"])
    app = web.Application()
    app.router.add_get(f"/{components.T5_REPOSITORY}/resolve/{components.T5_REVISION}/spiece.model", publisher.answer)
    async with TestServer(app) as server, GuardedClient(allow_private=True) as client:
        there = settings.model_copy(update={"hub_url": str(server.make_url("/"))})
        downloader = Downloader(client, sleep=no_wait)
        fetched = await fetch_vocabulary(downloader, there)
        assert fetched.path == vocabulary_path(there)
        assert fetched.path.read_bytes() == raw
        asked = len(publisher.seen)
        await fetch_vocabulary(downloader, there)
        assert len(publisher.seen) == asked
        fetched.path.unlink()
        publisher.faults = ["other"] * 20
        with pytest.raises(WrongDigest):
            await fetch_vocabulary(downloader, there)
        assert not vocabulary_path(there).exists()


async def no_wait(_: float) -> None:
    pass


def test_the_pinned_vocabulary_is_the_engines() -> None:
    from streamapp.engine import t5_vocabulary

    assert (components.T5_DIGEST, components.T5_SIZE) == (t5_vocabulary.DIGEST, t5_vocabulary.SIZE)


@pytest.mark.parametrize(
    ("base", "family"),
    [("Flux.1 D", "flux"), ("Flux.1 S", "flux"), ("Flux.1 Krea", "flux"), ("Flux.1 Kontext", None), ("SD 3", "sd3"),
     ("SD 3.5", "sd3"), ("SD 3.5 Large Turbo", "sd3"), ("SD 3.5 Medium", "sd3"), ("Flux.2 D", None)],
)  # fmt: skip
def test_base_models_of_pages_have_their_family(base: str, family: str | None) -> None:
    assert family_of_base(base) == family


def test_a_list_that_is_none_is_refused(tmp_path: Path) -> None:
    from streamapp.engine import EngineError

    path = tmp_path / "x.safetensors"
    assert listed(path) == {}
    list_of(path).write_bytes(orjson.dumps({"vae": 3}))
    with pytest.raises(EngineError, match="must be an object of paths"):
        listed(path)
