"""Pictures made ready for inpainting and put together afterwards."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from streamapp.engine import EngineError
from streamapp.engine.images import Box, cut, feathered, masked_area, outpainted, pasted, resized

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    made = Image.new("RGB", (width, height), RED)
    made.paste(BLUE, (width // 2, 0, width, height))
    return made


def masked(box: tuple[int, int, int, int], size: tuple[int, int] = (100, 60)) -> Image.Image:
    """White in a box."""
    made = Image.new("L", size)
    made.paste(255, box)
    return made


def test_stretching_changes_proportions() -> None:
    made = resized(halves(), 20, 20, "stretch")
    assert [made.size, made.getpixel((1, 10)), made.getpixel((18, 10))] == [(20, 20), RED, BLUE]


def test_cropping_cuts_off_the_same_on_both_sides() -> None:
    striped = halves()
    striped.paste(GREEN, (0, 0, 10, 20))
    striped.paste(GREEN, (30, 0, 40, 20))
    made = resized(striped, 20, 20, "crop")
    assert [made.size, made.getpixel((0, 10)), made.getpixel((19, 10))] == [(20, 20), RED, BLUE]


def test_filling_keeps_all_and_draws_the_edges_out() -> None:
    made = resized(halves(), 40, 40, "fill")
    assert [made.size, made.getpixel((0, 0)), made.getpixel((39, 39))] == [(40, 40), RED, BLUE]
    assert made.crop((0, 10, 40, 30)).tobytes() == halves().tobytes()


def test_a_picture_of_that_size_stays_as_it_is() -> None:
    file = io.BytesIO()
    halves().save(file, "PNG")
    assert resized(file.getvalue(), 40, 20, "crop").tobytes() == halves().tobytes()


def test_another_mode_is_refused() -> None:
    mode: Any = "tile"
    with pytest.raises(EngineError, match="known: crop, fill, stretch"):
        resized(halves(), 8, 8, mode)


def test_a_feathered_edge_falls_from_white_to_black() -> None:
    made = feathered(masked((0, 0, 50, 60)), 5)
    values = [made.getpixel((x, 30)) for x in range(100)]
    assert [values[10], values[90]] == [255, 0]
    assert 100 < values[50] < 155
    assert values == sorted(values, reverse=True)
    assert feathered(masked((0, 0, 50, 60)), 0).tobytes() == masked((0, 0, 50, 60)).tobytes()


@pytest.mark.parametrize(
    ("box", "padding", "expected"),
    [
        ((40, 20, 60, 40), 0, Box(40, 20, 60, 40)),
        ((40, 20, 60, 40), 10, Box(30, 10, 70, 50)),
        ((40, 20, 50, 40), 0, Box(35, 20, 55, 40)),
        ((0, 0, 10, 20), 0, Box(0, 0, 20, 20)),
        ((90, 50, 100, 60), 4, Box(86, 46, 100, 60)),
        ((0, 0, 100, 60), 8, Box(0, 0, 100, 60)),
    ],
    ids=["square", "padded", "of the proportions", "moved inwards", "in a corner", "all of it"],
)
def test_the_masked_area_is_padded_to_the_proportions_that_are_drawn(
    box: tuple[int, int, int, int], padding: int, expected: Box
) -> None:
    assert masked_area(masked(box), padding, 64, 64) == expected


def test_only_the_masked_area_changes() -> None:
    """Cut, draw, paste back: outside the mask every pixel is what it was."""
    before, mask = halves(100, 60), masked((40, 20, 60, 40))
    area = masked_area(mask, 8, 64, 64)
    assert cut(before, area, 64, 64).size == (64, 64)
    after = pasted(before, Image.new("RGB", (64, 64), GREEN), mask, area)
    assert after.crop((40, 20, 60, 40)).getcolors() == [(400, GREEN)]
    after.paste(before.crop((40, 20, 60, 40)), (40, 20))
    assert after.tobytes() == before.tobytes()


def test_a_feathered_mask_mixes_at_its_edge() -> None:
    before, mask = Image.new("RGB", (100, 60), RED), feathered(masked((40, 0, 60, 60)), 3)
    mixed = pasted(before, Image.new("RGB", (100, 60), BLUE), mask).getpixel((40, 30))
    assert isinstance(mixed, tuple)
    assert mixed[0] > 60
    assert mixed[2] > 60


def test_outpainting_gives_a_larger_canvas_and_the_mask_of_what_is_new() -> None:
    canvas, mask = outpainted(halves(), left=8, bottom=16)
    assert canvas.size == mask.size == (48, 36)
    assert canvas.crop((8, 0, 48, 20)).tobytes() == halves().tobytes()
    assert mask.crop((8, 0, 48, 20)).getcolors() == [(800, 0)]
    assert mask.getcolors() == [(800, 0), (48 * 36 - 800, 255)]
    assert [canvas.getpixel((0, 0)), canvas.getpixel((47, 35))] == [RED, BLUE]


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(EngineError, match="nothing white"):
        masked_area(masked((0, 0, 0, 0)), 0, 64, 64)
    with pytest.raises(EngineError, match="0 or more"):
        masked_area(masked((0, 0, 9, 9)), -1, 64, 64)
    with pytest.raises(EngineError, match="more than 0 on one"):
        outpainted(halves())
    with pytest.raises(EngineError, match="0 or more"):
        feathered(masked((0, 0, 9, 9)), -1)
    with pytest.raises(EngineError, match="mask is 100x60, the image 40x20"):
        pasted(halves(), halves(), masked((0, 0, 9, 9)))
