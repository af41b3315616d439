"""Learned words (textual inversion) in requests: found by name in the text, kept in the task, listed apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from streamapp.db import LoraRow
from streamapp.errors import Conflict, InvalidRequest
from streamapp.models.catalogue import add_file
from streamapp.models.learned import token, with_tokens
from tests.models.make_lora import make_lora
from tests.web.conftest import Api, Serve


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.safetensors"
    save_file({"emb_params": np.ones((3, 768), np.float32)}, path)
    return path


async def add(api: Api, name: str, path: Path, kind: str = "embedding", family: str = "sd15") -> Any:
    row = await add_file(api.runtime.registry, api.app.settings, name, path, kind, family)
    api.runtime.shelf.forget()
    return row


@pytest.fixture
async def api(serve: Serve, file: Path) -> AsyncIterator[Api]:
    """A service that knows the word ``toy``."""
    async with serve() as api:
        await add(api, "toy", file)
        yield api


async def names(api: Api, text: str, negative: str | None = None) -> list[str]:
    """The learned words of the task that a request became."""
    params = {} if negative is None else {"negative_text": negative}
    row = await api.runtime.tasks.get((await api.generate({"text": text, "params": params})).data["task_id"])
    assert row is not None
    return [each.name for each in row.params.embeddings]


async def test_a_word_is_found_in_either_text_and_as_a_whole_only(api: Api) -> None:
    assert await names(api, "a (Toy:1.2) in the grass") == ["toy"]
    assert await names(api, "a panda", "blurry, toy") == ["toy"]
    assert await names(api, "toys of a stoyer") == []


async def test_lists_show_it_apart_and_it_is_no_lora(api: Api, tmp_path: Path) -> None:
    every = (await api.get("/api/v1/models")).data
    assert [(each["name"], each["vectors"]) for each in every["embeddings"]] == [("toy", 3)]
    assert every["loras"] == (await api.get("/api/v1/loras")).data["loras"]
    assert [each["name"] for each in every["loras"]] == ["duotone", "ink"]
    refused = await api.generate({"text": "a fox", "params": {"lora_name": "toy"}})
    assert "write it in the text" in refused.refused(400, "invalid_request", field="loras")
    with pytest.raises(Conflict, match="toy is the name of a learned word"):
        await add(api, "toy", make_lora(tmp_path / "lora.safetensors"), "lora")


async def test_what_a_running_task_says_is_not_deleted(api: Api) -> None:
    task_id = await api.submitted(text="a toy")
    (await api.call("DELETE", "/api/v1/loras/toy")).refused(409, "conflict")
    await api.ended(task_id)
    assert (await api.call("DELETE", "/api/v1/loras/toy")).data["name"] == "toy"
    assert await names(api, "a toy") == []


async def test_a_recipe_names_the_file_that_was_drawn_with(api: Api) -> None:
    row = await api.runtime.registry.lora("toy")
    assert row is not None
    again = {"text": "a toy", "provenance": {"embeddings": [{"name": "toy", "digest": row.digest}]}}
    assert (await api.generate(again)).data["status"] == "queued"
    again["provenance"] = {"embeddings": [{"name": "toy", "digest": "0" * 64}]}
    assert "learned word toy" in (await api.generate(again)).refused(409, "conflict")


async def test_the_engine_is_told_of_the_file_not_of_the_word(api: Api) -> None:
    """So that a task means the same when another file gets the name."""
    row = await api.runtime.registry.lora("toy")
    assert isinstance(row, LoraRow)
    assert with_tokens("(TOY:1.2), toys", [row]) == f"({token(row)}:1.2), toys"
    assert row.digest[:16] in token(row)


BAD: dict[str, tuple[dict[str, tuple[int, ...]], str, str]] = {
    "two encoders": ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "sd15", "no learned word for sd15"),
    "one encoder": ({"emb_params": (1, 768)}, "sdxl", "whose files hold clip_l and clip_g"),
    "unequal": ({"clip_l": (1, 768), "clip_g": (2, 1280)}, "sdxl", "no table of vectors for each encoder"),
    "too long": ({"emb_params": (76, 768)}, "sd15", "has 76 vectors: 1 to 75 fit"),
    "not yet": ({"emb_params": (1, 768)}, "flux", "family flux take no learned words"),
}


@pytest.mark.parametrize("case", BAD)
async def test_files_for_something_else_are_refused(api: Api, tmp_path: Path, case: str) -> None:
    shapes, family, says = BAD[case]
    save_file({key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(InvalidRequest, match=says):
        await add(api, "bad", tmp_path / "bad.safetensors", family=family)
