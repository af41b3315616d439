"""From a photograph to the picture a ControlNet was trained on. ``canny`` needs nothing but numpy; no torch here."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from streamapp.engine.errors import EngineError
from streamapp.engine.events import Picture

#: What these would draw, and whose weights they need.
ABSENT: Mapping[str, str] = {
    "depth": "a depth estimator (MiDaS or Depth Anything)",
    "pose": "a pose estimator (OpenPose or DWPose)",
}
#: tan(22.5°) in 15 bits: directions are compared in whole numbers, so that every machine gives the same edges.
_TAN, _BITS = 13573, 15


def preprocess(name: str, image: Any, **options: Any) -> Any:
    """The control picture of an image, as a PIL image of the same size.

    Args:
        name: ``canny``; ``depth`` and ``pose`` need weights that are not there.
        image: whatever :func:`rgb` reads.
        options: of the preprocessor, see :func:`canny`.

    Raises:
        EngineError: ``missing_weights`` for one that needs a network, ``unknown_preprocessor``, ``invalid_image``.
    """
    if name in ABSENT:
        message = f"preprocessor {name!r} needs the weights of {ABSENT[name]}, which are absent"
        raise EngineError("missing_weights", f"{message}; send a picture that is preprocessed already, or use canny")
    if name not in PREPROCESSORS:
        known = ", ".join([*PREPROCESSORS, *ABSENT])
        raise EngineError("unknown_preprocessor", f"preprocessor {name!r} is not known; known: {known}")
    return PREPROCESSORS[name](image, **options)


def canny(image: Any, low: int = 100, high: int = 200) -> Any:
    """White edges on black (Canny 1986), one pixel wide, as ControlNets of that name were trained on.

    Sobel gradients of 3x3 per colour, of which the steepest counts; strength is ``|dx| + |dy|``. Edges above ``high``
    count, and those above ``low`` that touch one that counts.

    Raises:
        EngineError: ``invalid_job`` unless ``0 <= low <= high``, ``invalid_image``.
    """
    import numpy as np
    from PIL import Image

    if not 0 <= low <= high:
        raise EngineError("invalid_job", f"canny's thresholds are {low} and {high}; they must be 0 <= low <= high")
    pixels = np.asarray(rgb(image)).astype(np.int64)
    across, down = _gradients(np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge"))
    steepest = (abs(across) + abs(down)).argmax(axis=-1)[..., None]
    across, down = (np.take_along_axis(each, steepest, axis=-1)[..., 0] for each in (across, down))
    strength = np.pad(abs(across) + abs(down), 1)
    ridge = np.pad(_ridges(strength, across, down), 1)
    edges = _connected(ridge & (strength > high), ridge & (strength > low))[1:-1, 1:-1]
    return Image.fromarray((edges * 255).astype(np.uint8)).convert("RGB")


def _gradients(padded: Any) -> tuple[Any, Any]:
    """Sobel's differences across and down, of ``(h + 2, w + 2, 3)``."""
    smooth = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    sides = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth[:, 2:] - smooth[:, :-2], sides[2:] - sides[:-2]


def _ridges(strength: Any, across: Any, down: Any) -> Any:
    """Where a pixel is stronger than both neighbours along its gradient; ``strength`` has a border of one."""
    import numpy as np

    height, width = across.shape

    def near(rows: int, columns: int) -> Any:
        return strength[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    own, flat, steep = near(0, 0), abs(across) * _TAN, abs(down) << _BITS
    falling = (across < 0) == (down < 0)
    choices = [
        (steep < flat, (own > near(0, -1)) & (own >= near(0, 1))),
        (steep > flat + (abs(across) << (_BITS + 1)), (own > near(-1, 0)) & (own >= near(1, 0))),
        (falling, (own > near(-1, -1)) & (own > near(1, 1))),
    ]
    other = (own > near(-1, 1)) & (own > near(1, -1))
    return np.select([where for where, _ in choices], [value for _, value in choices], other)


def _connected(strong: Any, weak: Any) -> Any:
    """The strong pixels and every weak one that is joined to them, through sides or corners."""
    import numpy as np

    width = strong.shape[1]
    around = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    reached, allowed = strong.ravel().copy(), weak.ravel()
    front = np.flatnonzero(reached)
    while front.size:
        near = np.unique(front[:, None] + around)
        front = near[allowed[near] & ~reached[near]]
        reached[front] = True
    return reached.reshape(strong.shape)


def rgb(image: Any, what: str = "image") -> Any:
    """An image as a PIL image in RGB: PIL, :class:`Picture`, an encoded file's bytes, or ``(h, w, 3)`` uint8.

    Raises:
        EngineError: ``invalid_image`` for what cannot be read.
    """
    from PIL import Image

    try:
        if isinstance(image, Picture):
            return image.to_pil()
        if isinstance(image, bytes):
            return Image.open(io.BytesIO(image)).convert("RGB")
        if isinstance(image, Image.Image):
            return image.convert("RGB")
        if getattr(image, "dtype", None) == "uint8":
            return Image.fromarray(image).convert("RGB")
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise EngineError("invalid_image", f"the {what} cannot be read: {error}", field="image") from error
    wanted = "a PIL image, a Picture, the bytes of an encoded picture or an (h, w, 3) array of uint8"
    raise EngineError("invalid_image", f"the {what} is a {type(image).__name__}; give {wanted}", field="image")


def raw(image: Any, what: str = "image") -> Picture:
    """The same as raw RGB, which crosses processes and is compared bit for bit.

    Raises:
        EngineError: ``invalid_image``.
    """
    if isinstance(image, Picture):
        return image
    read = rgb(image, what)
    return Picture(read.width, read.height, read.tobytes())


#: name → what draws it.
PREPROCESSORS: Mapping[str, Callable[..., Any]] = {"canny": canny}
