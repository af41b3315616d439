"""The JSON recipe: a body to submit again, and the check that it still means the same."""

from __future__ import annotations

import re

import orjson
import pytest

from streamapp.errors import Conflict
from streamapp.generation import MAX_SEED, LoraRef
from streamapp.recipe import check_provenance, image_seed, recipe_body
from tests.postprocess.conftest import BRUSH, DIGEST, make_params, make_recipe


def test_the_body_asks_for_this_one_picture() -> None:
    assert recipe_body(make_params(), 1) == {
        "text": "a cute panda",
        "params": {
            "model": "pocket",
            "resolution": "512x512",
            "style": "sticker",
            "steps": 20,
            "cfg_scale": 3.0,
            "sampler": "DDIM",
            "clip_skip": 1,
            "seed": 1235,
            "negative_text": "blurry, text",
            "batch_size": 1,
            "loras": [{"name": "brush", "weight": 0.75}],
        },
    }


def test_what_was_not_asked_for_is_left_out() -> None:
    body = recipe_body(make_params(style=None, negative_prompt=None, loras=()), 0)
    assert {"style", "negative_text", "loras"}.isdisjoint(body["params"])


def test_seeds_stay_in_their_range() -> None:
    assert image_seed(make_params(seed=MAX_SEED), 0) == MAX_SEED
    assert image_seed(make_params(seed=MAX_SEED), 1) == 0


def test_the_provenance_says_where_it_came_from() -> None:
    provenance = make_recipe(index=1)["provenance"]
    assert provenance["task_id"] == "img-20261123-x"
    assert provenance["index"] == 1
    assert provenance["created_at"] == "2026-11-23T08:29:34.123+00:00"
    assert provenance["model"] == {"name": "pocket", "digest": DIGEST}
    assert provenance["loras"] == [{"name": "brush", "weight": 0.75, "digest": BRUSH, "autov3": "0123456789ab"}]
    assert (provenance["drawn_at"], provenance["delivered_at"]) == ("128x128", "512x512")
    assert provenance["notes"] == ["drawn smaller"]
    assert all(re.match(r"\d", provenance["versions"][package]) for package in ("streamapp", "torch", "diffusers"))


def test_a_recipe_survives_json() -> None:
    recipe = make_recipe(make_params(text="一只可爱的熊猫"))
    assert orjson.loads(orjson.dumps(recipe)) == recipe


PROMPT = "a cute panda, sticker, white border"


def test_a_recipe_that_still_holds_is_accepted() -> None:
    provenance = make_recipe()["provenance"]
    check_provenance(provenance, model_digest=DIGEST, lora_digests={"brush": BRUSH}, prompt=PROMPT, drawn="128x128")
    check_provenance({}, model_digest=DIGEST, lora_digests={}, prompt="anything", drawn="8x8")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_digest": "ef" * 32}, "model pocket"),
        ({"lora_digests": {"brush": "ef" * 32}}, "LoRA brush"),
        ({"lora_digests": {}}, "LoRA brush"),
        ({"prompt": "a cute panda, other words"}, "style"),
        ({"drawn": "104x104"}, "size"),
    ],
)
def test_a_recipe_that_would_draw_something_else_is_refused_by_name(changed: dict[str, object], named: str) -> None:
    same = {"model_digest": DIGEST, "lora_digests": {"brush": BRUSH}, "prompt": PROMPT, "drawn": "128x128"}
    with pytest.raises(Conflict, match=named):
        check_provenance(make_recipe()["provenance"], **(same | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [{"model": 3}, {"loras": [7]}, {"loras": None}, {"model": {"digest": None}}])
def test_provenance_of_an_odd_form_breaks_nothing(broken: dict[str, object]) -> None:
    check_provenance(broken, model_digest=DIGEST, lora_digests={}, prompt="x", drawn="8x8")


def test_each_picture_of_a_task_has_a_recipe_of_its_own() -> None:
    seeds = [make_recipe(index=index)["params"]["seed"] for index in range(2)]
    assert seeds == [1234, 1235]


def test_loras_of_unknown_digest_are_named_without_one() -> None:
    recipe = make_recipe(make_params(loras=(LoraRef(name="other"),)))
    assert recipe["provenance"]["loras"] == [{"name": "other", "weight": 1.0, "digest": ""}]
