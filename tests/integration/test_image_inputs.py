"""Inpainting as a user does it: a picture and a mask go in, the shipped model draws, the rest stays as it was."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import aiohttp
import pytest
from PIL import Image, ImageChops

from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.filterwarnings("ignore:.*torch_dtype.*")]


def file(image: Image.Image) -> bytes:
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


async def test_a_picture_is_painted_into_and_its_recipe_gives_it_again(tmp_path: Path) -> None:
    photo, mask = Image.linear_gradient("L").convert("RGB"), Image.new("L", (256, 256))
    mask.paste(255, (128, 0, 256, 256))
    async with Fleet({"STREAMAPP_DATA_DIR": str(tmp_path / "data"), "STREAMAPP_ENGINE": "inline"}, tmp_path) as fleet:
        service = fleet.start("up", "up")
        await fleet.ready(service)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{service.url}/api/v1/image/inputs", data=file(photo)) as answer,
        ):
            sent = (await answer.json())["data"]["id"]
        wanted = {"mask": base64.b64encode(file(mask)).decode(), "mask_feather": 0, "steps": 3, "seed": 5}
        first = await fleet.submit(service, "a red apple", init_image=sent, **wanted)
        other = await fleet.submit(service, "a red apple", init_image=sent, steps=4, strength=0.5, seed=5)
        tasks = await fleet.finished(service, [first, other], within=60)
        assert [tasks[each]["status"] for each in (first, other)] == ["succeeded", "succeeded"]
        drawn = Image.open(io.BytesIO(await fleet.picture(service, tasks[first])))
        assert drawn.crop((0, 0, 128, 256)).tobytes() == photo.crop((0, 0, 128, 256)).tobytes()
        assert drawn.crop((128, 0, 256, 256)).tobytes() != photo.crop((128, 0, 256, 256)).tobytes()
        recipe = tasks[first]["images"][0]["recipe"]
        assert recipe["params"]["init_image"] == sent
        done = await fleet.json("POST", f"{service.url}/api/v1/image/generate", recipe)
        again = done["data"]["task_id"]
        tasks |= await fleet.finished(service, [again], within=60)
        assert (await fleet.picture(service, tasks[again])) is not None
        same = Image.open(io.BytesIO(await fleet.picture(service, tasks[again])))
        # The first one may have shared batches with the other: its float32 sums are rounded elsewhere.
        assert max(ImageChops.difference(same, drawn).tobytes()) <= 1
