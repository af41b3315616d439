"""Pictures made ready for image-to-image and inpainting, and put together afterwards. Pure functions of PIL; no torch.

Masks are white (255) where a picture is drawn anew and black where it stays. Every picture that is taken may be what
:func:`~streamapp.engine.preprocess.rgb` reads; every picture that is given is a PIL image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from streamapp.engine.errors import EngineError
from streamapp.engine.preprocess import rgb

Mode = Literal["crop", "fill", "stretch"]
#: Sides of a latent's pixel in pixels.
FACTOR = 8


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels; ``right`` and ``bottom`` are the first that do not belong to it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.bottom - self.top

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """As PIL takes it."""
        return self.left, self.top, self.right, self.bottom


def resized(image: Any, width: int, height: int, mode: Mode = "crop") -> Any:
    """The picture at a size.

    ``stretch`` changes its proportions; ``crop`` keeps them and cuts off what is over, the same on both sides; ``fill``
    keeps them and fills what is missing with the picture's own edges.

    Raises:
        EngineError: ``invalid_job`` for another mode, ``invalid_image``.
    """
    from PIL import Image

    picture = rgb(image)
    if picture.size == (width, height):
        return picture
    if mode == "stretch":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    if mode not in {"crop", "fill"}:
        raise EngineError("invalid_job", f"resize mode {mode!r} is not known; known: crop, fill, stretch")
    across, down = width / picture.width, height / picture.height
    ratio = max(across, down) if mode == "crop" else min(across, down)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    scaled = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    if mode == "crop":
        return scaled.crop((-left, -top, width - left, height - top))
    return _extended(scaled, left, top, width - size[0] - left, height - size[1] - top)


def feathered(mask: Any, radius: float) -> Any:
    """The mask with an edge that fades over about ``radius`` pixels: for pasting, the engine's own has hard edges.

    Raises:
        EngineError: ``invalid_job`` for a negative radius, ``invalid_image``.
    """
    from PIL import ImageFilter

    if not radius >= 0:
        raise EngineError("invalid_job", f"a mask's edge is feathered over {radius} pixels; it must be 0 or more")
    grey = rgb(mask, "mask").convert("L")
    return grey.filter(ImageFilter.GaussianBlur(radius)) if radius else grey


def masked_area(mask: Any, padding: int, width: int, height: int) -> Box:
    """The smallest rectangle around what is masked, padded, of the proportions ``width : height`` where it fits.

    So drawing it at ``width`` times ``height`` does not change proportions; at the picture's sides it is moved inwards.

    Raises:
        EngineError: ``invalid_job`` for a mask without anything white or a negative padding, ``invalid_image``.
    """
    grey = rgb(mask, "mask").convert("L").point(lambda value: 255 if value >= 128 else 0)
    found = grey.getbbox()
    if found is None:
        raise EngineError("invalid_job", "the mask has nothing white: nothing would be drawn", field="mask_image")
    if padding < 0:
        raise EngineError("invalid_job", f"the padding of the masked area is {padding}; it must be 0 or more")
    left, right = max(0, found[0] - padding), min(grey.width, found[2] + padding)
    top, bottom = max(0, found[1] - padding), min(grey.height, found[3] + padding)
    wide = max(right - left, round((bottom - top) * width / height))
    high = max(bottom - top, round((right - left) * height / width))
    left, right = _grown(left, right, wide, grey.width)
    top, bottom = _grown(top, bottom, high, grey.height)
    return Box(left, top, right, bottom)


def cut(image: Any, box: Box, width: int, height: int) -> Any:
    """A part of the picture (or mask) at a size: what is drawn when only the masked area is."""
    return resized(rgb(image).crop(box.sides), width, height, "stretch")


def pasted(image: Any, drawn: Any, mask: Any, box: Box | None = None) -> Any:
    """The picture with what was drawn where the mask is white, mixed where it is grey.

    Args:
        image: the picture before.
        drawn: of the picture's size, or of ``box`` at any size.
        mask: of the picture's size, feathered or not.
        box: the part that was drawn; None for all of it.

    Raises:
        EngineError: ``invalid_job`` for a mask of another size, ``invalid_image``.
    """
    from PIL import Image

    before = rgb(image)
    grey = rgb(mask, "mask").convert("L")
    if grey.size != before.size:
        message = f"the mask is {grey.width}x{grey.height}, the image {before.width}x{before.height}"
        raise EngineError("invalid_job", f"{message}; resize one to the other", field="mask_image")
    area = box or Box(0, 0, before.width, before.height)
    after = before.copy()
    after.paste(resized(drawn, area.width, area.height, "stretch"), (area.left, area.top))
    inside = Image.new("L", before.size)
    inside.paste(grey.crop(area.sides), (area.left, area.top))
    return Image.composite(after, before, inside)


def outpainted(image: Any, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> tuple[Any, Any]:
    """A larger canvas around the picture, and the mask of what is new: outpainting is inpainting with these two.

    What is new begins as the picture's own edges, drawn out. Sides that are multiples of eight give exact borders.

    Raises:
        EngineError: ``invalid_job`` for negative or no pixels, ``invalid_image``.
    """
    from PIL import Image

    if min(left, top, right, bottom) < 0 or not any((left, top, right, bottom)):
        raise EngineError("invalid_job", "give the pixels to add on each side, 0 or more, and more than 0 on one")
    picture = rgb(image)
    canvas = _extended(picture, left, top, right, bottom)
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (left, top, left + picture.width, top + picture.height))
    return canvas, mask


def _extended(picture: Any, left: int, top: int, right: int, bottom: int) -> Any:
    """The picture with its edges repeated outwards."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="edge"))


def _grown(start: int, end: int, size: int, limit: int) -> tuple[int, int]:
    """A stretch of at least ``size`` around another, within 0 and ``limit``."""
    size = min(size, limit)
    start = min(max(0, start - (size - (end - start)) // 2), limit - size)
    return start, start + size
