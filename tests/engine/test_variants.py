"""How a model's row names what its tensors do not tell."""

from __future__ import annotations

from typing import Any

import pytest

from streamapp.engine.errors import EngineError
from streamapp.engine.variants import scheduler_of, variant_of
from streamapp.models.offer import VARIANTS as OFFERED


@pytest.mark.parametrize(
    ("traits", "variant"),
    [
        ({}, None),
        ({"variant": "lcm"}, "lcm"),
        ({"variant": "sdxl-refiner"}, None),
        ({"variant": "dev"}, None),
        ({"prediction": "v_prediction"}, "v_prediction"),
        ({"prediction": "v_prediction", "zero_snr": True}, "zero_snr"),
        ({"prediction": "epsilon"}, None),
    ],
)
def test_a_row_names_its_variant(traits: dict[str, Any], variant: str | None) -> None:
    assert variant_of(traits) == variant


def test_every_variant_that_a_site_names_is_one_the_engine_knows() -> None:
    for traits in OFFERED.values():
        named = variant_of(traits)
        assert named is not None
        assert scheduler_of({"_class_name": "PNDMScheduler"}, named)["_class_name"] != "PNDMScheduler"


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(EngineError, match="variant 'x' is not known"):
        scheduler_of({}, "x")
