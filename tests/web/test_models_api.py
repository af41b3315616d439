"""Models and LoRAs over HTTP: look, fetch with progress, upload, use at once, delete; and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest
from safetensors.numpy import save

from streamapp.models.incoming import MAX_HEADER, TEMPORARY
from tests.models.sites import make_lora, sd15_file
from tests.web.conftest import Answer, Api, Serve

KEYS = {"api_keys": ["ada:secret-of-ada", "eve:secret-of-eve"], "operators": ["ada"]}
ADA, EVE = {"X-API-Key": "secret-of-ada"}, {"X-API-Key": "secret-of-eve"}


@pytest.fixture
def lora(tmp_path: Path) -> bytes:
    return make_lora(tmp_path / "made.safetensors").read_bytes()


async def upload(
    api: Api,
    data: bytes,
    filename: str = "brush.safetensors",
    path: str = "/api/v1/loras",
    headers: Any = None,
    **fields: str | None,
) -> Answer:
    form = aiohttp.FormData()
    form.add_field("file", data, filename=filename, content_type="application/octet-stream")
    # The model that ships is so narrow that the family of its LoRAs cannot be told.
    for name, value in {"family": "sd15", **fields}.items():
        if value is not None:
            form.add_field(name, value)
    async with api.session.post(api.url + path, data=form, headers=headers) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


def stored(api: Api) -> list[str]:
    """Every file in the folder of LoRAs."""
    return sorted(path.name for path in (api.app.settings.data_path / "models").rglob("*") if path.is_file())


@pytest.mark.parametrize("path", ["/api/v1/loras", "/api/v1/lora/upload"])
async def test_an_uploaded_lora_is_used_by_the_very_next_request(api: Api, lora: bytes, path: str) -> None:
    asked = {"text": "a red apple", "params": {"lora_name": "brush"}}
    (await api.generate(asked)).refused(404, "not_found", field="loras")
    said = (await upload(api, lora, path=path)).data
    digest = hashlib.sha256(lora).hexdigest()
    assert (said["name"], said["family"], said["digest"], said["size"], said["created"]) == (
        "brush", "sd15", digest, len(lora), True,
    )  # fmt: skip
    assert said["trigger_words"] == ["pocket style", "wobbly"]
    assert (await api.generate(asked)).status == 200
    assert stored(api) == [f"brush-{digest[:10]}.safetensors"]
    shown = (await api.get("/api/v1/loras/brush")).data
    assert (shown["state"], shown["kind"], shown["pinned"], shown["ships"]) == ("here", "lora", False, False)
    assert [row["name"] for row in (await api.get("/api/v1/loras")).data["loras"]] == ["brush", "duotone", "ink"]


async def test_the_same_lora_again_changes_nothing_and_another_one_needs_another_name(
    api: Api, lora: bytes, tmp_path: Path
) -> None:
    first = (await upload(api, lora, name="brush")).data
    again = (await upload(api, lora, filename="other.safetensors")).data
    assert (again["name"], again["created"], first["created"]) == ("brush", False, True)
    other = make_lora(tmp_path / "two.safetensors", seed=2).read_bytes()
    assert "choose another name" in (await upload(api, other, name="brush")).refused(409, "conflict")
    assert len(stored(api)) == 1


async def test_a_lora_larger_than_a_request_may_be_is_taken_and_one_above_the_limit_is_not(
    serve: Serve, lora: bytes
) -> None:
    async with serve(max_request_bytes=1000, max_upload_bytes=len(lora)) as api:
        assert (await upload(api, lora)).data["created"]
        (await upload(api, lora + b"x", name="two")).refused(413, "too_large")
        assert len(stored(api)) == 1

        async def pieces() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
            yield (24).to_bytes(8, "little")
            for _ in range(200):
                yield bytes(len(lora))

        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        async with api.session.post(api.url + "/api/v1/loras", data=pieces(), headers=kind) as answer:
            Answer(answer.status, answer.headers, await answer.read()).refused(413, "too_large")
        assert len(stored(api)) == 1


def adapter(*names: str) -> bytes:
    return bytes(save({name: np.zeros((4, 768), np.float16) for name in names}))


BOMB = (4 * 1024**3).to_bytes(8, "little") + b"{" * 1000
LIES = (100).to_bytes(8, "little") + orjson.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})


@pytest.mark.parametrize(
    ("data", "filename", "words"),
    [
        (b"PK\x03\x04" + bytes(100), "brush.safetensors", "pickled"),
        (b"\x80\x02" + bytes(100), "brush.safetensors", "pickled"),
        (bytes(100), "brush.ckpt", "pickled"),
        (adapter("lora_unet_a.hada_w1_a"), "a.safetensors", "LoHa"),
        (adapter("lora_unet_a.lokr_w1"), "a.safetensors", "LoKr"),
        (adapter("lora_unet_a.lora_down.weight", "lora_unet_a.dora_scale"), "a.safetensors", "DoRA"),
        (adapter("lora_te_a.lora_down.weight"), "a.safetensors", "family"),
        (adapter("lora_unet_a_attn2_to_k.lora_down.weight")[:-10], "a.safetensors", "not a whole"),
        (sd15_file(), "a.safetensors", "no LoRA weights"),
        (BOMB, "a.safetensors", "header is too long"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + bytes(100), "a.safetensors", "header is too long"),
        (LIES, "a.safetensors", "not a whole"),
        (b"<html>", "a.safetensors", "not a whole"),
        (b"", "a.safetensors", "file is missing"),
    ],
)  # fmt: skip
async def test_what_is_no_plain_lora_is_refused_and_leaves_nothing(
    api: Api, data: bytes, filename: str, words: str
) -> None:
    assert words in (await upload(api, data, filename, family=None)).refused(400, "invalid_request")
    assert stored(api) == []


async def test_a_family_that_the_tensors_contradict_is_refused(api: Api, lora: bytes) -> None:
    wide = bytes(save({"lora_unet_a_attn2_to_k.lora_down.weight": np.zeros((4, 2048), np.float16)}))
    assert "of family sdxl, not sd15" in (await upload(api, wide, family="sd15")).refused(
        400, "invalid_request", field="family"
    )
    (await upload(api, lora, family="nonsense")).refused(400, "invalid_request")
    (await upload(api, lora, family="flux")).refused(400, "invalid_request", field="family")
    assert stored(api) == []


@pytest.mark.parametrize(
    "filename",
    [
        "../../evil.safetensors",
        "..\\evil.safetensors",
        "/etc/evil.safetensors",
        "%2e%2e%2fevil.safetensors",
        "..",
        ".hidden.safetensors",
    ],
)
async def test_names_of_files_never_become_paths(api: Api, lora: bytes, filename: str) -> None:
    said = (await upload(api, lora, filename)).data
    assert "/" not in said["name"]
    assert "\\" not in said["name"]
    [path] = (api.app.settings.data_path / "models").rglob("*.safetensors")
    assert path.parent == api.app.settings.data_path / "models" / "loras"
    (await upload(api, lora, name="../up")).refused(400, "invalid_request", field="name")


async def test_an_upload_that_breaks_off_leaves_nothing_behind(api: Api, lora: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.app.port)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
    writer.write(
        b"POST /api/v1/loras HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        + b"Content-Length: %d\r\n\r\n" % (len(head) + len(lora) + 20) + head + lora[: len(lora) // 2]
    )  # fmt: skip
    await writer.drain()
    folder = api.app.settings.data_path / "models" / "loras"
    async with asyncio.timeout(10):
        while not list(folder.glob(f"{TEMPORARY}*")):
            await asyncio.sleep(0.01)
        writer.close()
        while stored(api):
            await asyncio.sleep(0.01)
    assert [row["name"] for row in (await api.get("/api/v1/loras")).data["loras"]] == ["duotone", "ink"]
    del reader


async def test_bodies_that_are_no_form_are_refused(api: Api) -> None:
    (await api.call("POST", "/api/v1/loras", {"file": "x"})).refused(400, "invalid_request")
    for kind in ("multipart/form-data", "multipart/form-data; boundary=b"):
        answer = await api.call("POST", "/api/v1/loras", b"nothing of the kind", headers={"Content-Type": kind})
        answer.refused(400, "invalid_request")


async def test_deleting_frees_the_file_when_its_last_name_goes(api: Api, lora: bytes) -> None:
    await upload(api, lora, name="one")
    assert (await upload(api, lora, name="two")).data["created"]
    assert len(stored(api)) == 1
    freed = [(await api.call("DELETE", f"/api/v1/loras/{name}")).data["freed"] for name in ("one", "two")]
    assert (freed, stored(api)) == ([0, len(lora)], [])
    assert "did you mean" not in (await api.call("DELETE", "/api/v1/loras/two")).refused(404, "not_found")


async def test_what_tasks_wait_for_and_what_ships_is_not_deleted(api: Api, lora: bytes) -> None:
    await upload(api, lora, name="brush")
    task_id = await api.submitted(params={"lora_name": "brush"})
    (await api.call("DELETE", "/api/v1/loras/brush")).refused(409, "conflict")
    await api.claimed(task_id)
    (await api.call("DELETE", "/api/v1/loras/brush")).refused(409, "conflict")
    assert (await api.call("DELETE", f"/api/v1/image/task/{task_id}")).status == 200
    (await api.call("DELETE", "/api/v1/models/pocket")).refused(409, "conflict")
    assert "pocket" in (await api.get("/api/v1/models/poket")).refused(404, "not_found")


async def test_only_operators_fetch_and_delete(serve: Serve, lora: bytes) -> None:
    async with serve(**KEYS) as api:
        assert (await upload(api, lora, headers=EVE)).data["created"]
        (await api.call("DELETE", "/api/v1/loras/brush", headers=EVE)).refused(403, "operators_only")
        for kind in ("models", "loras"):
            answer = await api.call("POST", f"/api/v1/{kind}/pull", {"reference": "civitai:1@2"}, headers=EVE)
            answer.refused(403, "operators_only")
        assert (await api.call("DELETE", "/api/v1/loras/brush", headers=ADA)).data["freed"] == len(lora)


async def test_a_lora_is_named_by_its_digest(api: Api, lora: bytes) -> None:
    digest = (await upload(api, lora)).data["digest"]
    row = await api.runtime.tasks.get(await api.submitted(params={"lora_name": digest[:10], "lora_weight": 0.5}))
    assert row is not None
    assert [(one.name, one.weight) for one in row.params.loras] == [("brush", 0.5)]
    twice = {"loras": [{"name": "brush"}, {"name": digest}]}
    assert "twice" in (await api.generate({"text": "a", "params": twice})).refused(
        400, "invalid_request", field="loras"
    )


async def test_an_upload_that_does_not_fit_the_disk_budget_is_refused(serve: Serve, lora: bytes) -> None:
    async with serve(models_max_bytes=len(lora) + 10) as api:
        assert (await upload(api, lora)).data["created"]
        other = adapter("lora_unet_a_attn2_to_k.lora_down.weight")
        assert "STREAMAPP_MODELS_MAX_BYTES" in (await upload(api, other, name="two")).refused(507, "no_space")
        assert (await upload(api, lora)).data["created"] is False
        assert len(stored(api)) == 1


async def test_an_older_version_of_a_name_is_not_drawn_with_by_its_digest(api: Api, lora: bytes) -> None:
    digest = (await upload(api, lora)).data["digest"]
    row = await api.runtime.registry.lora("brush")
    assert row is not None
    await api.runtime.registry.add_lora(replace(row, version="z", digest="f" * 64))
    api.runtime.shelf.forget()
    said = (await api.generate({"text": "a", "params": {"lora_name": digest}})).refused(400, "invalid_request")
    assert "name of its own" in said
