"""Pictures that somebody sent: told apart, measured and decoded within limits. Blocks: call it in threads."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from streamapp.errors import InvalidRequest

#: What is read, and its content type.
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
ONE_OF = "send a PNG, JPEG or WebP file"
#: Everything that Pillow raises for a file that is broken or hostile.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file is: content type, and pixels across and down as it is shown (turned as its EXIF says)."""

    content_type: str
    width: int
    height: int


def seen(data: bytes, most_pixels: int, field: str, *, mask: bool = False) -> Seen:
    """What a file is, decoded once to know that it can be; its size is judged before that.

    Raises:
        InvalidRequest: no picture of a known kind, broken, too many pixels, or a mask without anything white.
    """
    content_type = measured(data, most_pixels, field)
    picture = decoded(data, field, mask=mask)
    if mask and picture.getextrema()[1] < 128:  # type: ignore[operator] # one band has one pair
        raise InvalidRequest(f"{field} has nothing white: white is what is drawn anew", field=field)
    return Seen(content_type, picture.width, picture.height)


def measured(data: bytes, most_pixels: int, field: str) -> str:
    """The content type of a file whose header says no more than ``most_pixels``; nothing is decoded.

    Raises:
        InvalidRequest: see :func:`seen`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as picture:
            width, height, kind = picture.width, picture.height, str(picture.format)
    except BROKEN as error:
        raise InvalidRequest(f"{field} is no picture that can be read: {ONE_OF}", field=field) from error
    if width * height > most_pixels:
        raise InvalidRequest(
            f"{field} is {width}x{height}, more than the {most_pixels} pixels that are read here: send it smaller",
            field=field,
        )
    return FORMATS[kind]


def decoded(data: bytes, field: str, *, mask: bool = False) -> Image.Image:
    """The picture in RGB, what is transparent on white; a mask in grey, what is transparent black.

    Raises:
        InvalidRequest: it is broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as file:
            turned = ImageOps.exif_transpose(file)
            layers = turned.convert("RGBA")
    except BROKEN as error:
        raise InvalidRequest(f"{field} is broken: {ONE_OF} that opens elsewhere", field=field) from error
    ground = Image.new("RGBA", layers.size, "black" if mask else "white")
    return Image.alpha_composite(ground, layers).convert("L" if mask else "RGB")
