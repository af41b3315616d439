"""ControlNets in requests: checked, kept in the task with their pictures by digest, listed apart from LoRAs."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from streamapp.db import State
from streamapp.models.catalogue import add_file
from tests.models.make_controlnet import make_controlnet, make_folder
from tests.models.make_lora import make_lora
from tests.models.publisher import Publisher
from tests.models.sites import Double, file, playing, sd15_file, version
from tests.web.conftest import Api, Serve
from tests.web.test_prefetch import looking, until


def picture(colour: str = "red") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (64, 96), colour).save(made, "PNG")
    return made.getvalue()


RED = base64.b64encode(picture()).decode()
DIGEST = f"sha256:{hashlib.sha256(picture()).hexdigest()}"


async def add(api: Api, name: str, path: Path, kind: str = "controlnet", family: str = "sd15") -> Any:
    row = await add_file(api.runtime.registry, api.app.settings, name, path, kind, family)
    api.runtime.shelf.forget()
    return row


@pytest.fixture
async def api(serve: Serve, tmp_path: Path) -> AsyncIterator[Api]:
    """A service that knows the ControlNets ``edges`` and ``lines``."""
    async with serve(families=["sd15", "sdxl", "sd3", "flux"]) as api:
        for number, name in enumerate(("edges", "lines")):
            path = make_controlnet(tmp_path / f"{name}.safetensors", extra=(number + 1,))
            await add(api, name, path)
        yield api


async def drawn(api: Api, *controls: dict[str, Any], **params: Any) -> Any:
    """The row that a request became."""
    answer = await api.generate({"text": "a frog", "params": {"controls": list(controls), **params}})
    row = await api.runtime.tasks.get(answer.data["task_id"])
    assert row is not None
    return row


async def test_a_task_names_the_controlnet_and_its_picture_by_digest(api: Api) -> None:
    row = await drawn(
        api,
        {"model": "edges", "image": RED, "scale": 0.7, "start": 0.1, "end": 0.9, "preprocessor": "canny"},
        {"model": "lines", "image": DIGEST},
    )
    told = [(c.name, c.image.name, c.image.width, c.scale, c.start, c.end, c.preprocessor) for c in row.params.controls]
    assert told == [("edges", DIGEST, 64, 0.7, 0.1, 0.9, "canny"), ("lines", DIGEST, 64, 1.0, 0.0, 1.0, "none")]
    assert [each["image"] for each in row.request["params"]["controls"]] == [DIGEST, DIGEST]
    recipe = (await api.get(f"/api/v1/image/task/{row.id}")).data["recipe"]
    again = await api.runtime.tasks.get((await api.generate(recipe)).data["task_id"])
    assert again is not None
    assert again.params.controls == row.params.controls


async def test_it_may_be_named_by_its_digest(api: Api) -> None:
    row = await api.runtime.registry.lora("edges")
    assert row is not None
    assert (await drawn(api, {"model": row.digest[:10], "image": RED})).params.controls[0].name == "edges"


REFUSED: dict[str, tuple[dict[str, Any], int, str, str, str]] = {
    "unknown": ({"model": "edgy"}, 404, "not_found", "controls.0.model", "did you mean edges"),
    "depth": ({"preprocessor": "depth"}, 400, "missing_weights", "controls.0.preprocessor", "MiDaS or Depth Anything"),
    "pose": ({"preprocessor": "pose"}, 400, "missing_weights", "controls.0.preprocessor", "OpenPose or DWPose"),
    "backwards": ({"start": 0.6, "end": 0.4}, 400, "invalid_request", "controls.0.end", "begin before it ends"),
    "too strong": ({"scale": 3}, 400, "invalid_request", "params.controls.0.scale", "less than or equal to 2"),
    "no picture": ({"image": "AAAA"}, 400, "invalid_request", "controls.0.image", "no picture that can be read"),
    "gone": ({"image": f"sha256:{'0' * 64}"}, 400, "invalid_request", "controls.0.image", "no picture sha256"),
    "A1111's word": ({"weight": 1}, 400, "invalid_request", "params.controls.0.weight", "it is called scale"),
    "another kind": ({"preprocessor": "hed"}, 400, "invalid_request", "params.controls.0.preprocessor", "canny"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_wrong_with_one_is_said_with_its_place(api: Api, case: str) -> None:
    given, status, code, field, says = REFUSED[case]
    body = {"text": "a frog", "params": {"controls": [{"model": "edges", "image": RED, **given}]}}
    assert says in (await api.generate(body)).refused(status, code, field=field)


async def test_too_many_are_refused_and_the_old_name_leads_to_the_new_one(api: Api) -> None:
    one = {"model": "edges", "image": DIGEST}
    body = {"text": "a frog", "params": {"controls": [one] * 6}}
    (await api.generate(body)).refused(400, "invalid_request", field="params.controls")
    assert "called controls" in (await api.generate({"text": "a", "params": {"controlnet": one}})).refused(
        400, "invalid_request", field="params.controlnet"
    )


async def test_another_familys_does_not_fit_and_some_families_take_none(api: Api, tmp_path: Path) -> None:
    await add(api, "wide", make_controlnet(tmp_path / "w.safetensors", width=2048), family="sdxl")
    body = {"text": "a frog", "params": {"controls": [{"model": "wide", "image": RED}]}}
    says = (await api.generate(body)).refused(422, "does_not_fit", field="controls.0.model")
    assert "fits models of family sdxl, and pocket is of sd15" in says
    row = await api.runtime.registry.model("pocket")
    assert row is not None
    await api.runtime.registry.add_model(type(row)("third", "1", "sd3", row.source, row.path, row.digest, row.size))
    api.runtime.shelf.forget()
    body["params"]["model"] = "third"  # type: ignore[index]
    says = (await api.generate(body)).refused(422, "does_not_fit", field="controls")
    assert "sd3, whose models take no ControlNet yet; those of sd15, sdxl, flux do" in says


async def test_a_lora_and_a_controlnet_are_not_taken_for_each_other(api: Api, tmp_path: Path) -> None:
    await add(api, "brush", make_lora(tmp_path / "brush.safetensors"), "lora")
    body = {"text": "a", "params": {"controls": [{"model": "brush", "image": RED}]}}
    assert "is no ControlNet" in (await api.generate(body)).refused(400, "invalid_request", field="controls.0.model")
    body = {"text": "a", "params": {"lora_name": "edges"}}
    assert "name it in controls" in (await api.generate(body)).refused(400, "invalid_request", field="loras")


async def test_a_union_wants_a_mode(api: Api, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "all", "FluxControlNetModel", num_mode=3)
    await add(api, "all", folder, family="flux")
    row = await api.runtime.registry.model("pocket")
    assert row is not None
    await api.runtime.registry.add_model(type(row)("dev", "1", "flux", row.source, row.path, row.digest, row.size))
    api.runtime.shelf.forget()
    body = {"text": "a", "params": {"model": "dev", "controls": [{"model": "all", "image": RED, "mode": 3}]}}
    assert "0 to 2" in (await api.generate(body)).refused(400, "invalid_request", field="controls.0.mode")
    assert (await drawn(api, {"model": "all", "image": RED, "mode": 2}, model="dev")).params.controls[0].mode == 2
    both = {"model": "dev", "init_image": RED, "controls": [{"model": "all", "image": RED, "mode": 2}]}
    says = (await api.generate({"text": "a", "params": both})).refused(400, "invalid_request", field="controls")
    assert "not both" in says


async def test_lists_show_them_apart_and_each_alone(api: Api) -> None:
    every = (await api.get("/api/v1/models")).data
    names = [each["name"] for each in every["controlnets"]]
    assert names == [each["name"] for each in (await api.get("/api/v1/controlnets")).data["controlnets"]]
    assert names == ["edges", "lines"]
    assert every["loras"] == (await api.get("/api/v1/loras")).data["loras"]
    assert [each["name"] for each in every["loras"]] == ["duotone", "ink"]
    one = (await api.get("/api/v1/controlnets/edges")).data
    assert (one["kind"], one["state"], one["family"]) == ("controlnet", "here", "sd15")
    (await api.get("/api/v1/loras/edges")).refused(404, "not_found")
    assert (await api.call("POST", "/api/v1/controlnets/edges/release")).data == {"name": "edges", "released": False}


async def test_what_a_task_names_is_not_deleted(api: Api) -> None:
    row = await drawn(api, {"model": "edges", "image": RED})
    (await api.call("DELETE", "/api/v1/controlnets/edges")).refused(409, "conflict")
    await api.ended(row.id)
    assert (await api.call("DELETE", "/api/v1/controlnets/edges")).data["freed"] > 0
    assert [each["name"] for each in (await api.get("/api/v1/controlnets")).data["controlnets"]] == ["lines"]


async def test_a_recipe_of_another_file_is_refused_by_name(api: Api) -> None:
    row = await api.runtime.registry.lora("edges")
    assert row is not None
    body = {
        "text": "a frog",
        "params": {"controls": [{"model": "edges", "image": RED}]},
        "provenance": {"controls": [{"name": "edges", "digest": row.digest}]},
    }
    assert (await api.generate(body)).status == 200
    body["provenance"] = {"controls": [{"name": "edges", "digest": "0" * 64}]}
    assert "ControlNet edges" in (await api.generate(body)).refused(409, "conflict")


async def test_one_that_nobody_registered_is_fetched_for_a_request(serve: Serve, tmp_path: Path) -> None:
    double = Double(Publisher(make_controlnet(tmp_path / "far.safetensors").read_bytes()))
    about = {"name": "Far", "type": "Controlnet", "nsfw": False}
    double.version = version(model=about, files=[file(double.publisher, type="ControlNet")])
    given = {"model": "civitai:123@456", "image": RED}
    async with playing(double) as url, serve(civitai_url=url, hub_url=url, allow_private_sources=True) as api:
        answer = (await api.generate({"text": "a frog", "params": {"controls": [given]}})).data
        assert answer["status"] == "fetching"
        assert (await api.get("/api/v1/controlnets/Far")).data["state"] == "pending"
        task = await until(api, looking(api), answer["task_id"], lambda task: task.state is not State.FETCHING)
        assert (task.state, [control.name for control in task.params.controls]) == (State.QUEUED, ["Far"])
        assert (await api.get("/api/v1/controlnets/Far")).data["state"] == "here"
        refused = await api.generate({"text": "a frog", "params": {"lora_name": "civitai:123@456"}})
        assert "name it in controls" in refused.refused(400, "invalid_request", field="loras")


@pytest.mark.parametrize("kind", ["Checkpoint", "LORA"])
async def test_a_reference_to_something_else_is_refused_before_anything_is_fetched(serve: Serve, kind: str) -> None:
    double = Double(Publisher(sd15_file()))
    double.version = version(model={"name": "Far", "type": kind, "nsfw": False}, files=[file(double.publisher)])
    async with playing(double) as url, serve(civitai_url=url, hub_url=url, allow_private_sources=True) as api:
        given = {"model": "civitai:123@456", "image": RED}
        answer = await api.generate({"text": "a frog", "params": {"controls": [given]}})
        assert "and a controlnet is asked for" in answer.refused(422, "does_not_fit", field="controls")
        assert double.publisher.sent == 0
