"""The last stage of a picture: brought to its delivered size, encoded with its recipe, identified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from streamapp.generation import GenerationParams, Size
from streamapp.models.sizes import placement
from streamapp.postprocess.encoders import ENCODERS

Pixels = NDArray[np.uint8]
#: Width of the strip in which a picture fades into a continued edge, as a share of the side.
STRIP = 1 / 24
#: A continued edge takes its colours from so many points along the edge, each the median of so many neighbours.
SAMPLES, WINDOW = 64, 33


class Drawn(Protocol):
    """What the engine hands over: RGB pixels, ``(H, W, 3)``, 0 to 255."""

    @property
    def pixels(self) -> Pixels:
        """The picture."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A finished picture file; ``digest`` is the SHA-256 of ``data`` in hex, width and height are in pixels."""

    data: bytes
    content_type: str
    extension: str
    width: int
    height: int
    digest: str


def finish_picture(
    picture: Drawn | Pixels,
    params: GenerationParams,
    recipe: Mapping[str, Any],
    *,
    extension: str = "png",
    around: Callable[[Image.Image], Image.Image] | None = None,
) -> Encoded:
    """Resize the drawn picture to ``params.delivered`` and encode it with its recipe; the same bytes each time.

    ``around`` puts the resized picture into what it was painted into.
    """
    pixels = picture if isinstance(picture, np.ndarray) else picture.pixels
    image = deliver(Image.fromarray(np.ascontiguousarray(pixels), "RGB"), params.delivered)
    if around is not None:
        image = around(image)
    encoder = ENCODERS[extension]
    data = encoder.encode(image, recipe)
    digest = hashlib.sha256(data).hexdigest()
    return Encoded(data, encoder.content_type, encoder.extension, image.width, image.height, digest)


def deliver(image: Image.Image, size: Size) -> Image.Image:
    """The picture at ``size``: resized with Lanczos; where the aspect ratio differs, its edges are continued."""
    inner = placement(Size(width=image.width, height=image.height), size)
    if (inner.width, inner.height) != image.size:
        image = image.resize((inner.width, inner.height), Image.Resampling.LANCZOS)
    if inner == size:
        return image
    pixels = np.asarray(image)
    if inner.width < size.width:
        return Image.fromarray(_continued(pixels, size.width), "RGB")
    # Upwards is sideways of the transposed picture.
    return Image.fromarray(_continued(pixels.swapaxes(0, 1), size.height).swapaxes(0, 1).copy(), "RGB")


def _continued(pixels: Pixels, width: int) -> Pixels:
    """``(H, W, 3)`` set in the middle of ``width``, fading at left and right into continuations of its edges."""
    height, inner, _ = pixels.shape
    strip = max(1, round(inner * STRIP))
    left = (width - inner) // 2
    canvas = np.empty((height, width, 3), np.float64)
    canvas[:, left : left + inner] = pixels
    # Picture to continuation, from the strip's inner to its outer side.
    fade = np.linspace(0, 1, strip)[None, :, None]
    begin, end = _edge(pixels[:, :strip]), _edge(pixels[:, -strip:])
    canvas[:, :left], canvas[:, left + inner :] = begin, end
    first, last = canvas[:, left : left + strip], canvas[:, left + inner - strip : left + inner]
    first += (begin - first) * fade[:, ::-1]
    last += (end - last) * fade
    return np.asarray(np.rint(canvas).clip(0, 255), np.uint8)


def _edge(strip: Pixels) -> NDArray[np.float64]:
    """``(H, n, 3)`` to one column ``(H, 1, 3)``: its prevailing colours, so that what is cut off leaves no streak."""
    line = np.asarray(strip, np.float64).mean(axis=1)
    at = np.linspace(0, len(line) - 1, SAMPLES)
    samples = np.pad(line[np.rint(at).astype(int)], ((WINDOW // 2, WINDOW // 2), (0, 0)), mode="edge")
    colours = np.median(sliding_window_view(samples, WINDOW, axis=0), axis=-1)
    column = [np.interp(np.arange(len(line)), at, colours[:, channel]) for channel in range(3)]
    return np.stack(column, axis=1)[:, None]
