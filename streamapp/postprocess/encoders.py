"""File formats of pictures, each with its way to carry the recipe. A new format is one class and one line.

PNG: text chunks as in https://www.w3.org/TR/png-3/#11textinfo; ``parameters`` holds the infotext, as web UIs write
it, ``streamapp`` our JSON.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import orjson
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from streamapp.errors import InvalidRequest
from streamapp.infotext import infotext

PARAMETERS, OURS = "parameters", "streamapp"


class Encoder(Protocol):
    """One file format."""

    extension: str
    content_type: str

    def encode(self, image: Image.Image, recipe: Mapping[str, Any]) -> bytes:
        """The whole file, the same bytes for the same arguments."""


class PngEncoder:
    """Lossless; both recipes in text chunks."""

    extension = "png"
    content_type = "image/png"

    def encode(self, image: Image.Image, recipe: Mapping[str, Any]) -> bytes:
        """A PNG without time stamps or the like."""
        texts = PngInfo()
        # tEXt for Latin-1, iTXt for anything else: what readers of this chunk expect.
        texts.add_text(PARAMETERS, infotext(recipe))
        texts.add_itxt(OURS, orjson.dumps(recipe).decode())
        file = io.BytesIO()
        image.save(file, "PNG", pnginfo=texts, compress_level=4)
        return file.getvalue()


ENCODERS: Mapping[str, Encoder] = MappingProxyType({"png": PngEncoder()})


def read_recipe(data: bytes) -> dict[str, Any]:
    """Our JSON recipe from a picture file.

    Raises:
        InvalidRequest: when the file is no picture, or carries no recipe of ours.
    """
    try:
        recipe = orjson.loads(_texts(data).get(OURS, ""))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("the picture carries no recipe of this service", field="image") from error
    if not isinstance(recipe, dict) or "text" not in recipe:
        raise InvalidRequest("the picture carries no recipe of this service", field="image")
    return recipe


def read_infotext(data: bytes) -> str | None:
    """The infotext from a picture file, ``None`` when it has none.

    Raises:
        InvalidRequest: when the file is no picture.
    """
    return _texts(data).get(PARAMETERS)


def _texts(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG, wherever they stand in it."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            return {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InvalidRequest("the file is not a PNG picture", field="image") from error
