"""Pictures to start from: however they are sent, they are checked, kept once, and named by digest from then on."""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import FormData, web
from PIL import Image

from streamapp.storage import input_key
from tests.web.conftest import Answer, Api, Serve

INPUTS = "/api/v1/image/inputs"


def picture(width: int = 128, height: int = 128, kind: str = "PNG", colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, kind)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def drawn(api: Api, **params: Any) -> Any:
    """The parameters that a request was accepted with."""
    answer = await api.generate({"text": "a frog", "params": params})
    row = await api.runtime.tasks.get(answer.data["task_id"])
    assert row is not None
    return row


async def refused(api: Api, field: str, status: int = 400, **params: Any) -> str:
    answer = await api.generate({"text": "a frog", "params": params})
    return answer.refused(status, {400: "invalid_request", 413: "too_large"}[status], field=field)


async def stored(api: Api, name: str) -> bytes:
    key = input_key(name.removeprefix("sha256:"))
    return b"".join([part async for part in api.runtime.storage.read(key)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
async def test_a_picture_in_the_request_is_kept_under_its_digest(api: Api, kind: str, head: str) -> None:
    data = picture(kind=kind)
    row = await drawn(api, init_image=head + text(data), strength=0.5)
    start = row.params.start
    assert row.params.kind == "img2img"
    assert (start.image.name, start.image.width, start.strength, start.mask) == (digest(data), 128, 0.5, None)
    assert await stored(api, digest(data)) == data
    assert row.request["params"] == {"init_image": digest(data), "strength": 0.5}


async def test_a_mask_makes_it_inpainting_and_all_of_the_steps_are_done(api: Api) -> None:
    image, mask = picture(), picture(64, 64, colour="white")
    row = await drawn(api, init_image=text(image), mask=text(mask), mask_feather=7, resize_mode="fill")
    start = row.params.start
    assert (row.params.kind, start.strength, start.feather, start.resize) == ("inpaint", 1.0, 7, "fill")
    assert (start.image.name, start.mask.name) == (digest(image), digest(mask))


async def test_the_picture_says_which_size_is_delivered(api: Api) -> None:
    row = await drawn(api, init_image=text(picture(300, 200)))
    assert (str(row.params.delivered), row.params.start.strength) == ("300x200", 0.8)
    row = await drawn(api, init_image=text(picture(300, 200)), resolution="128x128")
    assert str(row.params.delivered) == "128x128"


async def test_a_picture_may_be_sent_ahead_and_named(api: Api) -> None:
    """As the body or in a form; the same file is kept once, under one name."""
    data = picture()
    sent = await api.call("POST", INPUTS, data, headers={"Content-Type": "image/png"})
    form = FormData()
    form.add_field("file", data, filename="red.png")
    async with api.session.post(api.url + INPUTS, data=form) as answer:
        again = Answer(answer.status, answer.headers, await answer.read())
    assert sent.data["id"] == again.data["id"] == digest(data)
    assert (sent.data["width"], sent.data["bytes"], sent.data["content_type"]) == (128, len(data), "image/png")
    assert (await api.call("GET", sent.data["url"])).body == data
    row = await drawn(api, init_image=sent.data["id"])
    assert row.params.start.image.name == digest(data)


async def test_a_recipe_names_the_digest_and_draws_the_same_again(api: Api) -> None:
    row = await drawn(api, init_image=text(picture()), mask=text(picture(colour="white")), strength=0.7, seed=3)
    recipe = (await api.get(f"/api/v1/image/task/{row.id}")).data["recipe"]
    assert recipe["params"]["init_image"] == digest(picture())
    assert recipe["params"]["mask"] == digest(picture(colour="white"))
    again = await api.runtime.tasks.get((await api.generate(recipe)).data["task_id"])
    assert again is not None
    assert again.params == row.params


async def test_a_picture_is_turned_as_its_exif_says(api: Api) -> None:
    file, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (64, 128)).save(file, "JPEG", exif=turned)
    row = await drawn(api, init_image=text(file.getvalue()))
    assert (row.params.start.image.width, row.params.start.image.height) == (128, 64)


@pytest.fixture
async def site() -> AsyncIterator[str]:
    """Another host with a picture, something else, and a way to it."""

    async def found(request: web.Request) -> web.Response:
        match request.path:
            case "/red.png":
                return web.Response(body=picture())
            case "/page":
                return web.Response(text="<html>")
            case "/elsewhere":
                raise web.HTTPFound("/red.png")
            case _:
                raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/{name}", found)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_an_address_is_fetched_and_kept(serve: Serve, site: str) -> None:
    async with serve(allow_private_inputs=True) as api:
        row = await drawn(api, init_image=f"{site}/elsewhere")
        assert row.params.start.image.name == digest(picture())
        assert row.request["params"] == {"init_image": f"{site}/elsewhere"}
        assert "answered 404" in await refused(api, "init_image", init_image=f"{site}/none")
        assert "no picture that can be read" in await refused(api, "init_image", init_image=f"{site}/page")


async def test_an_address_that_only_this_host_can_reach_is_refused(api: Api, site: str) -> None:
    assert "is not a public address" in await refused(api, "init_image", init_image=f"{site}/red.png")
    assert "must start with http" in await refused(api, "mask", init_image=text(picture()), mask="file:///etc/passwd")


async def test_limits_of_bytes_and_pixels(serve: Serve) -> None:
    """Pictures do not count as part of the request; what is left of it does."""
    large = picture(400, 300).ljust(9_900, b"\0")
    async with serve(max_input_bytes=10_000, max_input_pixels=200_000, max_request_bytes=1_000) as api:
        await drawn(api, init_image=text(large))
        assert "10000 bytes" in await refused(api, "init_image", 413, init_image=text(large + b"\0" * 2_000))
        assert "600x400" in await refused(api, "init_image", init_image=text(picture(600, 400)))
        body = {"text": "a" * 1_500, "params": {"init_image": text(picture())}}
        assert "without its pictures" in (await api.generate(body)).refused(413, "too_large")
        ahead = await api.call("POST", INPUTS, large + b"\0" * 2_000, headers={"Content-Type": "image/png"})
        assert "10000 bytes" in ahead.refused(413, "too_large")


def bomb(width: int, height: int) -> bytes:
    """A small file that says it is huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("init_image", {"init_image": "not base64!"}, "neither base64"),
    ("init_image", {"init_image": "data:image/png,abc"}, "must be in base64"),
    ("init_image", {"init_image": text(b"GIF89a" + bytes(40))}, "send a PNG, JPEG or WebP"),
    ("init_image", {"init_image": text(picture()[:100])}, "is broken"),
    ("init_image", {"init_image": text(bomb(60_000, 60_000))}, "no picture that can be read"),
    ("init_image", {"init_image": text(bomb(9_000, 9_000))}, "9000x9000, more than the 32000000 pixels"),
    ("init_image", {"init_image": f"sha256:{'0' * 64}"}, "send the picture"),
    ("init_image", {"init_image": "sha256:abc"}, "64 hexadecimal digits"),
    ("mask", {"mask": text(picture())}, "goes with init_image"),
    ("strength", {"strength": 0.5}, "goes with init_image"),
    ("mask", {"init_image": text(picture()), "mask": text(picture(colour="black"))}, "nothing white"),
    ("mask", {"init_image": text(picture()), "mask": text(picture(128, 64, colour="white"))}, "make them of one size"),
    ("strength", {"init_image": text(picture()), "strength": 0.1, "steps": 5}, "leaves nothing of 5 steps"),
    ("params.strength", {"init_image": text(picture()), "strength": 0}, "greater than 0"),
    ("params.resize_mode", {"init_image": text(picture()), "resize_mode": "tile"}, "'crop', 'fill' or 'stretch'"),
    ("params.image", {"image": text(picture())}, "it is called init_image"),
]


@pytest.mark.parametrize(("field", "params", "message"), BAD, ids=[message for _, _, message in BAD])
async def test_what_cannot_be_used_is_refused_with_what_to_change(
    api: Api, field: str, params: dict[str, Any], message: str
) -> None:
    assert message in await refused(api, field, **params)
