"""The finished file: size, recipe, digest, the same bytes each time."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from streamapp.errors import InvalidRequest
from streamapp.generation import GenerationParams, Size
from streamapp.infotext import infotext
from streamapp.postprocess import Encoded, finish_picture, read_infotext, read_recipe
from tests.postprocess.conftest import make_params, make_recipe

BLUE, RED = (40, 90, 200), (220, 30, 30)


def drawn(width: int, height: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A red square in the middle of a blue ground, ``(H, W, 3)``."""
    pixels = np.full((height, width, 3), BLUE, np.uint8)
    pixels[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = RED
    return pixels


def finish(width: int, height: int, size: tuple[int, int]) -> tuple[Encoded, Image.Image, GenerationParams]:
    """A picture drawn at ``width`` x ``height``, delivered at ``size``."""
    params = make_params(drawn=Size(width=width, height=height), delivered=Size(width=size[0], height=size[1]))
    encoded = finish_picture(drawn(width, height), params, make_recipe(params))
    return encoded, Image.open(io.BytesIO(encoded.data)), params


def test_a_picture_of_the_right_size_is_untouched() -> None:
    encoded, image, _ = finish(128, 104, (128, 104))
    assert np.array_equal(np.asarray(image), drawn(128, 104))
    assert (encoded.width, encoded.height) == (128, 104)
    assert (encoded.content_type, encoded.extension) == ("image/png", "png")
    assert encoded.digest == hashlib.sha256(encoded.data).hexdigest()


def test_a_small_picture_is_enlarged() -> None:
    _, image, _ = finish(128, 128, (512, 512))
    assert image.size == (512, 512)
    assert image.getpixel((20, 20)) == BLUE
    assert image.getpixel((256, 256)) == RED


@pytest.mark.parametrize(
    ("shape", "size", "inside", "outside"),
    [
        ((128, 104), (512, 208), [(256, 104)], [(2, 104), (509, 104)]),
        ((104, 128), (208, 512), [(104, 256)], [(104, 2), (104, 509)]),
        ((104, 128), (105, 300), [(52, 150)], [(52, 0), (52, 299)]),
    ],
)
def test_another_aspect_ratio_continues_the_edges(
    shape: tuple[int, int], size: tuple[int, int], inside: list[tuple[int, int]], outside: list[tuple[int, int]]
) -> None:
    _, image, _ = finish(*shape, size)
    assert image.size == size
    assert all(image.getpixel(at) == RED for at in inside)
    assert all(image.getpixel(at) == BLUE for at in outside)
    # A square stays a square.
    red = np.argwhere(np.asarray(image)[:, :, 0] > 130)
    across, up = (int(np.ptp(red[:, axis])) + 1 for axis in (1, 0))
    assert across / up == pytest.approx(shape[0] / shape[1], rel=0.03)


def test_both_recipes_are_in_the_file() -> None:
    encoded, _, params = finish(128, 128, (256, 256))
    assert read_recipe(encoded.data) == make_recipe(params)
    assert read_infotext(encoded.data) == infotext(make_recipe(params))


@pytest.mark.parametrize("text", ["一只可爱的熊猫\n第二行", 'quotes " and , commas', "café", "🐼", "x" * 4000])
def test_any_language_survives(text: str) -> None:
    params = make_params(text=text, prompt=text)
    encoded = finish_picture(drawn(128, 128), params, make_recipe(params))
    assert read_recipe(encoded.data)["text"] == text
    assert (read_infotext(encoded.data) or "").startswith(text)


def test_the_same_inputs_give_the_same_bytes() -> None:
    assert finish(128, 104, (512, 512))[0] == finish(128, 104, (512, 512))[0]


def test_an_engines_picture_is_taken_by_its_pixels() -> None:
    class Picture:
        pixels = drawn(128, 128)

    params = make_params()
    recipe = make_recipe(params)
    assert finish_picture(Picture(), params, recipe) == finish_picture(Picture.pixels, params, recipe)


def test_a_picture_without_our_recipe_is_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with pytest.raises(InvalidRequest, match="recipe"):
        read_recipe(file.getvalue())
    assert read_infotext(file.getvalue()) is None


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a PNG"):
        read_recipe(data)
