"""From what people paste to verified weights and a row; nothing that a site says becomes a path."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from streamapp.db import LoraRow, ModelRow
from streamapp.errors import AppError
from streamapp.models import download
from streamapp.models.catalogue import delete_files, locate
from streamapp.models.digest import identify
from streamapp.models.pull import open_sites, pull
from streamapp.models.steering import is_controlnet
from streamapp.settings import Settings
from tests.models.make_controlnet import make_controlnet
from tests.models.publisher import Publisher
from tests.models.sites import Double, file, make_lora, playing, sd15_file, version


@pytest.fixture
def double() -> Double:
    return Double(Publisher(sd15_file()))


@pytest.fixture
async def settings(double: Double, tmp_path: Path) -> AsyncIterator[Settings]:
    async with playing(double) as url:
        yield Settings(
            data_dir=tmp_path / "data",
            civitai_url=url,
            hub_url=url,
            civitai_token=SecretStr("c-secret"),
            hub_token=SecretStr("h-secret"),
            allow_private_sources=True,
        )


async def pulled(settings: Settings, text: str, **given: Any) -> ModelRow | LoraRow:
    async with open_sites(settings) as sites:
        return await pull(sites, settings, text, **given)


async def refused(settings: Settings, text: str, code: str) -> str:
    with pytest.raises(AppError) as caught:
        await pulled(settings, text)
    assert caught.value.code == code, caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "text",
    ["civitai:123@456", "civitai:123", "https://civitai.com/models/123?modelVersionId=456", "DIGEST", "AUTOV2",
     "urn:air:sd1:checkpoint:civitai:123@456", "https://civitai.com/api/download/models/456"],
)  # fmt: skip
async def test_every_reference_to_civitai_leads_to_the_same_weights(
    settings: Settings, double: Double, text: str
) -> None:
    digest = double.publisher.digest
    text = {"DIGEST": digest.upper(), "AUTOV2": digest[:10].upper()}.get(text, text)
    row = await pulled(settings, text)
    assert isinstance(row, ModelRow)
    assert (row.name, row.family, row.digest, row.size) == (
        "Dream-..-Shaper",
        "sd15",
        digest,
        len(double.publisher.body),
    )
    assert row.path == f"models/Dream-..-Shaper-{digest[:10]}.safetensors"
    assert identify(locate(row, settings)).digest == digest
    assert row.traits["license"] == {"commercial_use": ["Image"], "derivatives": True, "without_credit": False}
    assert (row.traits["base_model"], row.traits["air"]) == ("SD 1.5", "urn:air:sd1:checkpoint:civitai:123@456")


async def test_the_hub_gives_its_only_weights_by_their_digest(settings: Settings, double: Double) -> None:
    row = await pulled(settings, "owner/name", name="dreamy")
    assert (row.name, row.family, row.digest) == ("dreamy", "sd15", double.publisher.digest)
    assert (row.traits["license"], row.traits["page"]) == ("openrail", f"{settings.hub_url}/owner/name")
    again = await pulled(settings, "owner/name:dreamy.safetensors", name="dreamy")
    assert again == ModelRow(**{name: getattr(row, name) for name in row.__slots__} | {
        "traits": {**row.traits, "pulled_from": "owner/name:dreamy.safetensors"}})  # fmt: skip
    assert double.publisher.sent == len(double.publisher.body), "what is here is not fetched again"


async def test_tokens_go_to_their_site_and_nowhere_else(settings: Settings, double: Double) -> None:
    await pulled(settings, "civitai:123@456")
    await pulled(settings, "owner/name")
    wanted = {path: "Bearer h-secret" if "owner/name" in path else "Bearer c-secret" for path, _ in double.said}
    assert dict(double.said) == wanted
    assert all("Authorization" not in request.headers for request in double.publisher.seen)
    for path in settings.data_path.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes()


async def test_a_lora_is_registered_as_one_with_its_words(settings: Settings, double: Double, tmp_path: Path) -> None:
    double.publisher.body = make_lora(tmp_path / "ink.safetensors").read_bytes()
    double.version = version(
        model={"name": "Ink", "type": "LORA", "nsfw": False}, trainedWords=["inkstyle"], files=[file(double.publisher)]
    )
    row = await pulled(settings, "civitai:123@456")
    assert isinstance(row, LoraRow)
    assert (row.name, row.family, row.path.startswith("loras/Ink-")) == ("Ink", "sd15", True)
    assert (row.traits["trigger_words"], row.traits["format"], row.traits["rank"]) == (["inkstyle"], "kohya", 4)


async def test_a_controlnet_is_registered_as_one(settings: Settings, double: Double, tmp_path: Path) -> None:
    body = make_controlnet(tmp_path / "edges.safetensors", width=2048).read_bytes()
    double.publisher.body = body
    about = {"name": "Edges", "type": "Controlnet"}
    double.version = version(baseModel="SDXL 1.0", model=about, files=[file(double.publisher, type="ControlNet")])
    row = await pulled(settings, "civitai:123@456")
    assert isinstance(row, LoraRow)
    assert (is_controlnet(row), row.family) == (True, "sdxl")
    assert row.path.startswith("controlnets/Edges-")
    double.version = version(model=about, files=[file(double.publisher)])
    with pytest.raises(AppError, match="of family sdxl, its page says sd15"):
        await pulled(settings, "civitai:123@456")


async def test_a_few_step_variant_brings_its_defaults(settings: Settings, double: Double) -> None:
    double.version["baseModel"] = "SD 1.5 LCM"
    row = await pulled(settings, "civitai:123@456")
    assert {key: row.traits[key] for key in ("variant", "sampler", "steps", "guidance")} == {
        "variant": "lcm", "sampler": "LCM", "steps": 6, "guidance": 1.5
    }  # fmt: skip


NO = [
    ({"files": []}, "invalid_request", "no safetensors file"),
    ({"files": [{"metadata": {"format": "PickleTensor"}}]}, "invalid_request", "pickled files can run code"),
    ({"files": [{"virusScanResult": "Danger"}]}, "invalid_request", "passed the site's scans"),
    ({"model": {"name": "Hand", "type": "TextualInversion"}}, "invalid_request", "is a TextualInversion"),
    ({"baseModel": "Pony V7"}, "invalid_request", "made for Pony V7"),
    ({"baseModel": "SDXL 1.0"}, "invalid_request", "is of family sd15, its page says sdxl"),
    ({"baseModel": "Flux.1 D"}, "invalid_request", "flux"),
    ({"baseModel": "Something New"}, "invalid_request", "made for Something New"),
    ({"usageControl": "InternalGeneration"}, "not_allowed", "not the download"),
    ({"modelId": 999}, "not_found", "belongs to model 999"),
    ({"files": [{"hashes": {"SHA256": "0" * 64}}]}, "wrong_digest", "its publisher says 0000000000"),
    ({"id": "many"}, "fetch_failed", "a form that is not known"),
]


@pytest.mark.parametrize(("changes", "code", "says"), NO)
async def test_what_cannot_be_used_is_refused_with_the_reason(
    settings: Settings, double: Double, changes: dict[str, Any], code: str, says: str
) -> None:
    files = [file(double.publisher, **given) for given in changes.get("files", [{}])]
    double.version = version(**{**changes, "files": files})
    assert says in await refused(settings, "civitai:123@456", code)
    assert list(settings.data_path.rglob("*.safetensors")) == []


async def test_tensors_that_contradict_the_page_are_refused(settings: Settings, double: Double) -> None:
    double.publisher.body = sd15_file(cross=2048)
    double.version = version(files=[file(double.publisher)])
    assert "is of family sdxl, its page says sd15" in await refused(settings, "civitai:123@456", "invalid_request")


@pytest.mark.parametrize(
    ("status", "text", "code", "says"),
    [
        (401, "civitai:123@456", "needs_token", "STREAMAPP_CIVITAI_TOKEN"),
        (403, "civitai:123@456", "not_allowed", "does not show"),
        (500, "civitai:123@456", "fetch_failed", "answered 500"),
        (401, "owner/name", "needs_token", "STREAMAPP_HUB_TOKEN"),
        (403, "owner/name", "not_allowed", "accept its terms"),
    ],
)
async def test_a_site_that_says_no_is_explained(
    settings: Settings, double: Double, status: int, text: str, code: str, says: str
) -> None:
    double.status = status
    assert says in await refused(settings, text, code)


async def test_what_nobody_knows_is_not_found(settings: Settings) -> None:
    assert "is no reference to a model" in await refused(settings, "dreamshaper", "not_found")
    assert "no version 7" in await refused(settings, "civitai:123@7", "not_found")
    assert "digest ffffffffff" in await refused(settings, "f" * 64, "not_found")
    assert "no repository owner/other" in await refused(settings, "owner/other", "not_found")
    assert "no file x.safetensors" in await refused(settings, "owner/name:x.safetensors", "not_found")


async def test_a_repository_with_several_weights_asks_which(settings: Settings, double: Double) -> None:
    double.repo["siblings"].append({"rfilename": "other.safetensors", "size": 1})
    assert "name one as owner/name:FILE (dreamy.safetensors, other.safetensors)" in await refused(
        settings, "owner/name", "invalid_request"
    )
    double.repo["siblings"] = [{"rfilename": "model.ckpt", "size": 1}]
    assert "pickled weights only" in await refused(settings, "owner/name", "invalid_request")
    double.repo["siblings"] = [{"rfilename": "README.md", "size": 1}]
    assert "no weights beside its card" in await refused(settings, "owner/name", "invalid_request")


async def test_private_addresses_are_not_asked_unless_allowed(settings: Settings) -> None:
    careful = settings.model_copy(update={"allow_private_sources": False})
    assert "not a public address" in await refused(careful, "civitai:123@456", "address_refused")


async def test_a_full_disk_is_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SPARE", 1 << 60)
    assert "are free" in await refused(settings, "civitai:123@456", "no_space")


async def test_deleted_files_are_gone_and_the_package_stays(settings: Settings) -> None:
    from streamapp.models.catalogue import HERE
    from streamapp.models.shipped import POCKET

    row = await pulled(settings, "civitai:123@456")
    path = locate(row, settings)
    assert delete_files(row, settings) == row.size
    assert not path.exists()
    assert delete_files(row, settings) == 0
    assert delete_files(POCKET, settings) == 0
    assert (HERE / "pocket").is_dir()
