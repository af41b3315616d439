"""A ControlNet as an operator adds it and a request names it with a picture: it steers, and the recipe says by what."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
from PIL import Image, ImageChops, ImageDraw

from tests.engine import tiny
from tests.engine.test_exact import POCKET
from tests.integration.fleet import Fleet, Member, until

pytestmark = [pytest.mark.filterwarnings("ignore:.*torch_dtype.*")]

DRAWN = {"steps": 4, "seed": 5}


def photo() -> bytes:
    """A white box on grey: four edges."""
    image = Image.new("RGB", (96, 128), "grey")
    ImageDraw.Draw(image).rectangle((24, 30, 70, 90), fill="white")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


IMAGE = base64.b64encode(photo()).decode()
CANNY: dict[str, Any] = {"model": "canny", "image": IMAGE, "preprocessor": "canny"}
LINES: dict[str, Any] = {"model": "lines", "image": IMAGE}


def distance(one: bytes, other: bytes) -> int:
    """The largest difference of two pictures in any channel, 0 to 255."""
    difference = ImageChops.difference(*(Image.open(io.BytesIO(data)).convert("RGB") for data in (one, other)))
    return max(high for _, high in difference.getextrema())  # type: ignore[misc]


def make(folder: Path, seed: int) -> None:
    """A ControlNet with random weights for the model that ships."""
    unet: Any = diffusers.UNet2DConditionModel
    net = tiny.controlnet(folder, unet.from_pretrained(POCKET / "unet", local_files_only=True), seed)
    # Fresh convolutions leave next to nothing of the picture.
    for parameter in net.controlnet_cond_embedding.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 0)
    net.save_pretrained(folder, safe_serialization=True)


async def registered(fleet: Fleet, service: Member) -> dict[str, str]:
    """The digests of the ControlNets, once the service knows them."""

    async def known() -> dict[str, str]:
        found = (await fleet.json("GET", f"{service.url}/api/v1/controlnets"))["data"]["controlnets"]
        return {each["name"]: each["digest"] for each in found}

    digests: dict[str, str] = await until(known, within=20, what="the ControlNets are known", every=0.2)
    return digests


async def drawn(fleet: Fleet, service: Member, *cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks of requests that differ in their ControlNets only, side by side."""
    ids = [await fleet.submit(service, "a red apple", **DRAWN, controls=each) for each in cases]
    tasks = await fleet.finished(service, ids, within=90)
    return [tasks[task_id] for task_id in ids]


async def steered(fleet: Fleet, service: Member, digests: dict[str, str]) -> bytes:
    """Model, preprocessor, scale, share of the steps and company count; the picture with a scale of 0.4."""
    tasks = await drawn(
        fleet,
        service,
        [],
        [CANNY],
        [{**CANNY, "preprocessor": "none"}],
        [{**CANNY, "scale": 0.4}],
        [{**CANNY, "end": 0.5}],
        [CANNY, {**LINES, "start": 0.5}],
        [{**CANNY, "scale": 0}],
    )
    assert [task.get("error") for task in tasks] == [None] * len(tasks)
    pictures = [await fleet.picture(service, task) for task in tasks]
    for number, one in enumerate(pictures[:6]):
        assert [n for n, other in enumerate(pictures[:number]) if distance(one, other) <= 8] == []
    assert distance(pictures[0], pictures[6]) <= 1
    recipe = tasks[5]["images"][0]["recipe"]
    told = recipe["provenance"]["controls"]
    assert [(each["name"], each["digest"]) for each in told] == [(name, digests[name]) for name in ("canny", "lines")]
    assert [(each["scale"], each["start"], each["preprocessor"]) for each in told] == [
        (1, 0, "canny"),
        (1, 0.5, "none"),
    ]
    assert told[0]["image"].startswith("sha256:")
    again = (await fleet.json("POST", f"{service.url}/api/v1/image/generate", recipe))["data"]["task_id"]
    done = await fleet.finished(service, [again], within=60)
    assert distance(await fleet.picture(service, done[again]), pictures[5]) <= 1
    return pictures[3]


def by_command(fleet: Fleet, service: Member, folder: Path) -> bytes:
    """The picture that the command line draws with a scale of 0.4."""
    (folder / "photo.png").write_bytes(photo())
    given = ("--steps", "4", "--seed", "5", "--control", f"canny={folder / 'photo.png'}:0.4:canny")
    made = fleet.command("submit", "a red apple", *given, "--url", service.url, "--json", "-o", str(folder))
    assert made.wait(60) == 0, (folder / "submit-a red apple.log").read_text()
    (file,) = json.loads((folder / "submit-a red apple.log").read_text())["files"]
    return Path(file).read_bytes()


async def test_a_registered_controlnet_steers_and_one_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    """The tensors of small ones do not say their family: of ``odd`` the engine tells. ``broken`` is not what came."""
    for number, name in enumerate(("canny", "lines", "broken")):
        make(tmp_path / name, number)
    tiny.controlnet(tmp_path / "odd", tiny.unet(16), 1)
    env = {"STREAMAPP_DATA_DIR": str(tmp_path / "data"), "STREAMAPP_ENGINE": "inline"}
    async with Fleet(env, tmp_path) as fleet:
        for name in ("canny", "lines", "odd", "broken"):
            added = fleet.command("controlnets", "add", name, str(tmp_path / name), "--family", "sd15")
            assert added.wait(60) == 0, (tmp_path / "controlnets-add.log").read_text()
        service = fleet.start("up", "up")
        await fleet.ready(service)
        digests = await registered(fleet, service)
        assert distance(by_command(fleet, service, tmp_path), await steered(fleet, service, digests)) <= 1
        with (tmp_path / "broken" / "config.json").open("ab") as config:
            config.write(b" ")  # its hard link lies in the models folder
        tasks = await drawn(fleet, service, [{**LINES, "model": "odd"}], [{**LINES, "model": "broken"}], [LINES])
        assert [task["status"] for task in tasks] == ["failed", "failed", "succeeded"]
        assert "made for another family" in tasks[0]["error"]["message"]
        assert tasks[1]["error"]["code"] == "damaged_weights"
