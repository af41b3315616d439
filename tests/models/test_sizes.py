"""Sizes: what is drawn when another is asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamapp.errors import InvalidRequest
from streamapp.generation import Size
from streamapp.models.families import Traits, traits_of
from streamapp.models.shipped import POCKET
from streamapp.models.sizes import MAX_DELIVERED, MIN_DELIVERED, can_draw, fit, nearest, parse_size, placement

SD15 = traits_of("sd15")
SMALL = traits_of("sd15", POCKET.traits)


def size(text: str) -> Size:
    """``WIDTHxHEIGHT``."""
    return parse_size(text)


@pytest.mark.parametrize("text", ["512x768", "512×768", "512X768", " 512 * 768 "])
def test_a_resolution_is_width_times_height(text: str) -> None:
    assert parse_size(text) == Size(width=512, height=768)


@pytest.mark.parametrize("text", ["", "512", "x512", "-1x5", "512x768x1", "٥x٥", "1e3x512", "512x999999"])
def test_other_resolutions_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(InvalidRequest, match="WIDTHxHEIGHT"):
        parse_size(text)


@pytest.mark.parametrize("text", ["128x128", "104x128", "128x104", "112x120"])
def test_what_the_model_can_draw_is_drawn_as_asked(text: str) -> None:
    assert fit(size(text), SMALL) == (size(text), size(text), ())
    assert fit(size(text), SMALL, strict=True).drawn == size(text)


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ("512x512", "128x128"),
        ("1024x1024", "128x128"),
        ("512x768", "104x128"),
        ("1920x1080", "128x104"),
        ("640x512", "128x104"),
        ("136x136", "128x128"),
        ("64x64", "128x128"),
        ("100x100", "128x128"),
        ("127x128", "128x128"),
    ],
)
def test_pocket_draws_the_nearest_shape_and_says_so(asked: str, drawn: str) -> None:
    found = fit(size(asked), SMALL, model="pocket")
    assert (str(found.drawn), str(found.delivered)) == (drawn, asked)
    (note,) = found.notes
    assert "pocket" in note
    assert drawn in note


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [("500x500", "504x504"), ("512x768", "512x768"), ("2048x512", "1024x256"), ("64x64", "512x512")],
)
def test_a_full_size_model_is_bent_little(asked: str, drawn: str) -> None:
    assert str(fit(size(asked), SD15).drawn) == drawn


def test_strict_names_what_can_be_drawn() -> None:
    with pytest.raises(InvalidRequest, match=r"pocket cannot draw 512x512.*104 to 128.*128x128") as caught:
        fit(size("512x512"), SMALL, strict=True, model="pocket")
    assert caught.value.details["native"] == "128x128"


@pytest.mark.parametrize("asked", ["8x512", "512x8", "5000x512", "0x0"])
def test_sizes_beyond_any_use_are_refused(asked: str) -> None:
    with pytest.raises(InvalidRequest, match="16 to 4096"):
        fit(size(asked), SMALL)


SIDE = st.integers(MIN_DELIVERED, MAX_DELIVERED)


@given(SIDE, SIDE, st.sampled_from([SD15, SMALL, Traits(512, 256, 768, 512 * 512, size_step=64)]))
def test_every_size_has_a_drawable_shape_in_its_own_orientation(width: int, height: int, traits: Traits) -> None:
    asked = Size(width=width, height=height)
    drawn = nearest(asked, traits)
    assert can_draw(drawn, traits)
    turned = nearest(Size(width=height, height=width), traits)
    assert (turned.width, turned.height) == (drawn.height, drawn.width)
    assert (drawn.width - drawn.height) * (width - height) >= 0
    # What can be drawn as asked is.
    if can_draw(asked, traits):
        assert drawn == asked


@given(SIDE, SIDE)
def test_the_picture_fills_one_direction_and_keeps_its_shape(width: int, height: int) -> None:
    asked = Size(width=width, height=height)
    drawn = nearest(asked, SMALL)
    inner = placement(drawn, asked)
    assert inner.width == width or inner.height == height
    assert inner.width <= width
    assert inner.height <= height
    # Rounding to whole pixels weighs more in small pictures.
    bent = abs(math.log(inner.width / inner.height) - math.log(drawn.width / drawn.height))
    assert bent <= 0.03 + 1 / min(inner.width, inner.height)
