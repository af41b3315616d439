"""Styles and families by name."""

from __future__ import annotations

import pytest

from streamapp.errors import InvalidRequest
from streamapp.models.families import FAMILIES, family, traits_of
from streamapp.models.styles import STYLES, find_style, styled


@pytest.mark.parametrize("name", ["pixel-art", "Pixel Art", "pixel_art", " PIXEL  ART ", "像素"])
def test_a_style_is_found_in_any_spelling(name: str) -> None:
    found = find_style(name)
    assert found is not None
    assert found.name == "pixel-art"


@pytest.mark.parametrize("name", [None, "", "none", "None", "  "])
def test_no_style_is_no_style(name: str | None) -> None:
    assert find_style(name) is None
    assert styled("a panda", name) == "a panda"


def test_a_style_adds_its_words_behind_the_text() -> None:
    assert styled("a panda, ", "sticker") == "a panda, sticker, white border, flat colors"
    assert styled("", "sticker") == "sticker, white border, flat colors"


def test_an_unknown_style_is_refused_with_the_nearest_and_all() -> None:
    with pytest.raises(InvalidRequest, match="did you mean watercolor") as caught:
        find_style("watercolr")
    assert caught.value.details["known"] == list(STYLES)


def test_no_two_styles_share_a_name() -> None:
    names = [name for style in STYLES.values() for name in (style.name, *style.aliases)]
    assert len(names) == len(set(names))
    assert all(find_style(name) is not None for name in names)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="sd15"):
        family("sd16")
    with pytest.raises(InvalidRequest) as caught:
        traits_of("nothing")
    assert caught.value.details["known"] == list(FAMILIES)


def test_a_models_own_traits_come_first() -> None:
    traits = traits_of("sd15", {"native": 128, "guidance": 3.0, "trigger_words": ["x"]})
    assert (traits.native, traits.guidance, traits.steps) == (128, 3.0, 20)
