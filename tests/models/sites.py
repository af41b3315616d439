"""Civitai and the Hub, as far as they are asked here, in the shapes that they answer with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from aiohttp import web
from aiohttp.test_utils import TestServer
from safetensors.numpy import save

from tests.models.make_lora import make_lora
from tests.models.publisher import Publisher


def sd15_file(cross: int = 768, channels: int = 4, **more: Any) -> bytes:
    """The keys by which a Stable Diffusion checkpoint is known, with small tensors of the right width."""
    unet = "model.diffusion_model."
    tensors = {
        f"{unet}input_blocks.0.0.weight": np.zeros((8, channels, 3, 3), np.float16),
        f"{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": np.zeros((8, cross), np.float16),
        **more,
    }
    return bytes(save(tensors))


def version(**given: Any) -> dict[str, Any]:
    """A version with one safe file, as ``GET model-versions/{id}`` answers."""
    facts: dict[str, Any] = {
        "id": 456,
        "modelId": 123,
        "name": "v8",
        "air": "urn:air:sd1:checkpoint:civitai:123@456",
        "baseModel": "SD 1.5",
        "baseModelType": "Standard",
        "availability": "Public",
        "usageControl": "Download",
        "trainedWords": [],
        "nsfwLevel": 1,
        "model": {"name": "Dream/../Shaper", "type": "Checkpoint", "nsfw": False, "poi": False},
        "files": [],
        "unheard_of": {"a": 1},
    }
    return {**facts, **given}


def file(publisher: Publisher, **given: Any) -> dict[str, Any]:
    """A file of a version."""
    facts: dict[str, Any] = {
        "id": 9,
        "name": "../../evil.safetensors",
        "type": "Model",
        "primary": True,
        "sizeKB": len(publisher.body) / 1024,
        "hashes": {"SHA256": publisher.digest.upper(), "AutoV2": publisher.digest[:10].upper()},
        "metadata": {"format": "SafeTensor", "size": "pruned", "fp": "fp16"},
        "pickleScanResult": "Success",
        "virusScanResult": "Success",
    }
    return {**facts, **given}


class Double:
    """Both sites on one server; ``said`` notes who sent which token where."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.version = version(files=[file(publisher)])
        large = {"sha256": publisher.digest, "size": len(publisher.body)}
        self.repo: dict[str, Any] = {
            "id": "owner/name",
            "sha": "0123456789abcdef",
            "gated": False,
            "tags": [],
            "cardData": {"license": "openrail", "base_model": "sd-legacy/stable-diffusion-v1-5"},
            "siblings": [
                {"rfilename": "README.md", "size": 10},
                {"rfilename": "dreamy.safetensors", "size": 134, "lfs": large},
            ],
        }  # fmt: skip
        self.status = 200
        self.said: list[tuple[str, str | None]] = []

    def routes(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/v1/models/123", self.model)
        app.router.add_get("/api/v1/model-versions/{id}", self.one)
        app.router.add_get("/api/v1/model-versions/by-hash/{hash}", self.by_hash)
        app.router.add_get("/api/models/owner/name/revision/{revision}", self.repository)
        for path in ("/api/download/models/456", "/owner/name/resolve/0123456789abcdef/dreamy.safetensors"):
            app.router.add_get(path, self.download)
        app.router.add_get("/file", self.publisher.answer)
        return app

    def _note(self, request: web.Request) -> None:
        self.said.append((request.path, request.headers.get("Authorization")))

    async def model(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.json_response({
            "id": 123, "name": "Dream", "allowCommercialUse": ["Image"], "allowDerivatives": True,
            "allowNoCredit": False, "modelVersions": [{"id": 456, "name": "v8"}, {"id": 455, "name": "v7"}],
        })  # fmt: skip

    async def one(self, request: web.Request) -> web.Response:
        self._note(request)
        if self.status != 200:
            return web.json_response({"error": "no"}, status=self.status)
        if request.match_info["id"] != "456":
            return web.json_response({"error": "No model with id"}, status=404)
        return web.json_response(self.version)

    async def by_hash(self, request: web.Request) -> web.Response:
        asked = request.match_info["hash"]
        if not self.publisher.digest.startswith(asked.lower()):
            return web.json_response({"error": "Model not found"}, status=404)
        return web.json_response(self.version)

    async def repository(self, request: web.Request) -> web.Response:
        self._note(request)
        if self.status != 200:
            return web.json_response({"error": "no"}, status=self.status)
        return web.json_response(self.repo)

    async def download(self, request: web.Request) -> web.Response:
        self._note(request)
        # To the storage behind it, on what is another host for a browser.
        there = f"http://localhost:{request.url.port}/file"
        return web.Response(status=307, headers={"Location": there})


@asynccontextmanager
async def playing(double: Double) -> AsyncIterator[str]:
    """The address of both sites while the block runs."""
    async with TestServer(double.routes(), host="127.0.0.1") as server:
        yield str(server.make_url("")).rstrip("/")


__all__ = ["Double", "file", "make_lora", "playing", "sd15_file", "version"]
