"""Preprocessors: edges where they are, one pixel wide, the same every time; the absent ones say what they need."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from streamapp.engine import EngineError, Picture
from streamapp.engine.preprocess import preprocess, raw


def drawn(background: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """A white square of 20 pixels in the middle of 40."""
    image = Image.new("RGB", (40, 40), background)
    ImageDraw.Draw(image).rectangle((10, 10, 29, 29), fill=(255, 255, 255))
    return image


def edges(image: Image.Image, **options: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    found = np.asarray(preprocess("canny", image, **options))
    assert found.shape == (image.height, image.width, 3)
    assert set(np.unique(found)) <= {0, 255}
    return found[..., 0] > 0


def test_a_square_has_one_line_around_it() -> None:
    """Every row and column through it crosses two edge pixels, each beside the border; nothing is drawn elsewhere."""
    found = edges(drawn())
    for line in (*found[13:27], *found.T[13:27]):
        assert len(np.flatnonzero(line)) == 2
        assert abs(np.flatnonzero(line) - np.array([9.5, 29.5])).max() <= 0.5
    away = np.ones_like(found)
    away[8:32, 8:32] = False
    away |= np.pad(np.ones((14, 14), bool), 13)
    assert not found[away].any()


def test_a_plain_picture_has_none_and_colours_count() -> None:
    """Red on green of equal brightness is an edge too."""
    assert not edges(Image.new("RGB", (16, 16), (90, 120, 40))).any()
    image = Image.new("RGB", (16, 16), (200, 0, 0))
    image.paste((0, 102, 0), (8, 0, 16, 16))
    assert edges(image).any(axis=1).all()


def test_a_faint_edge_counts_where_it_joins_a_strong_one() -> None:
    """A line that fades out is drawn on down to the lower threshold, a faint one alone is not."""
    column = np.linspace(60, 10, 40).astype(np.uint8)
    fading = np.zeros((40, 16, 3), np.uint8)
    fading[:, 8:] = column[:, None, None]
    lower, upper = edges(Image.fromarray(fading), low=100, high=200), edges(Image.fromarray(fading), low=200, high=200)
    assert lower.any(axis=1).sum() > upper.any(axis=1).sum() > 0
    faint = np.zeros((16, 16, 3), np.uint8)
    faint[:, 8:] = 40
    assert not edges(Image.fromarray(faint), low=100, high=200).any()
    assert edges(Image.fromarray(faint), low=100, high=159).any()


@pytest.mark.parametrize("direction", [(1, 1), (1, -1)])
def test_a_slope_is_one_line_without_gaps(direction: tuple[int, int]) -> None:
    rows, columns = np.mgrid[:32, :32]
    side = (rows * direction[0] + columns * direction[1]) > (31 if direction[1] > 0 else 0)
    found = edges(Image.fromarray((side[..., None] * np.full(3, 255)).astype(np.uint8)))
    assert found[4:28].any(axis=1).all()
    assert found[4:28].sum(axis=1).max() <= 2


def test_the_same_picture_in_any_form_gives_the_same_edges() -> None:
    image = drawn((40, 80, 160))
    file = io.BytesIO()
    image.save(file, "PNG")
    forms = [image, image.convert("RGBA"), raw(image), file.getvalue(), np.asarray(image)]
    assert len({preprocess("canny", form).tobytes() for form in forms}) == 1
    assert raw(image) == Picture(40, 40, image.tobytes())


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("depth", "missing_weights", "'depth' needs the weights of a depth estimator"),
        ("pose", "missing_weights", "'pose' needs the weights of a pose estimator"),
        ("sketch", "unknown_preprocessor", "known: canny, depth, pose"),
    ],
)
def test_what_is_not_there_says_what_it_needs(name: str, code: str, message: str) -> None:
    with pytest.raises(EngineError, match=message) as refused:
        preprocess(name, drawn())
    assert refused.value.code == code


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(EngineError, match="0 <= low <= high"):
        preprocess("canny", drawn(), low=200, high=100)
