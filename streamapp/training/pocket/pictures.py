"""Icons as pixels: drawn from SVG, cut to their ink, turned to other colours, set on grounds.

Pictures are float32 arrays ``(side, side, 4)`` in [0, 1], colours premultiplied by alpha.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.float32]

#: Side of a kept picture; scenes are made smaller from it.
KEPT = 192
#: Hue in degrees, saturation and lightness factors of colour words.
HUES = {"red": 2, "orange": 28, "yellow": 50, "green": 125, "blue": 217, "purple": 277, "pink": 332}
GROUNDS = {
    "white": (255, 255, 255),
    "pink": (255, 182, 213),
    "blue": (110, 170, 255),
    "yellow": (255, 232, 110),
    "green": (130, 215, 130),
    "purple": (180, 130, 230),
    "orange": (255, 175, 90),
    "red": (235, 80, 80),
    "black": (25, 25, 28),
    "gray": (165, 165, 170),
}


def draw(svg: str, side: int = KEPT) -> Pixels:
    """An SVG's ink, as large as it fits into the square, in its middle."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * side, height=2 * side, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = image.getchannel("A").point(lambda value: 255 * (value > 8)).getbbox()
    image = image.crop(box)
    scale = side / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX
    )
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels: Pixels = np.asarray(square, dtype=np.float32) / np.float32(255)
    pixels[..., :3] *= pixels[..., 3:]
    return pixels


def svg_of(icons: dict[str, Any], name: str) -> str:
    """A whole SVG file of one icon of a package."""
    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def symmetric(picture: Pixels) -> bool:
    """Whether it may be mirrored: side views, mirrored, come out as both directions laid over each other."""
    return float(np.abs(picture - picture[:, ::-1]).sum() / (picture.sum() + 1e-6)) < 0.30


def coloured(picture: Pixels, colour: str) -> Pixels:
    """The picture in a colour: its main hue and what lies near it are turned; without a main hue it is tinted."""
    alpha = picture[..., 3:]
    straight = np.divide(picture[..., :3], alpha, out=np.zeros_like(picture[..., :3]), where=alpha > 0.003)
    hsv = np.asarray(Image.fromarray((straight * 255).astype(np.uint8)).convert("HSV"), dtype=np.float32)
    hue, saturation, value = hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255
    weight = saturation * value * alpha[..., 0]
    target = float(HUES[colour])
    vivid = float((weight > 0.2).sum() / max(1, (alpha > 0.5).sum()))
    if vivid < 0.12:
        turned, touched = np.full_like(hue, target), alpha[..., 0] > 0
        saturation = np.where(value > 0.2, 0.62, saturation)
    else:
        histogram, edges = np.histogram(hue, bins=36, range=(0, 360), weights=weight)
        smooth = histogram + 0.5 * (np.roll(histogram, 1) + np.roll(histogram, -1))
        main = float(edges[int(smooth.argmax())] + 5)
        away = (hue - main + 180) % 360 - 180
        touched = (np.abs(away) < 50) & (saturation > 0.12)
        turned = target + 0.25 * away
        saturation = np.where(touched, np.maximum(saturation, 0.5), saturation)
    if colour == "pink":
        saturation = np.where(touched, 0.6 * saturation, saturation)
        value = np.where(touched, np.minimum(1, 0.35 + 0.75 * value), value)
    elif colour in {"yellow", "orange"}:
        value = np.where(touched, np.minimum(1, 0.2 + 0.9 * value), value)
    made = np.stack([np.where(touched, turned, hue) % 360 * (255 / 360), saturation * 255, value * 255], axis=-1)
    rgb = Image.fromarray(made.clip(0, 255).astype(np.uint8), "HSV").convert("RGB")
    return np.concatenate([np.asarray(rgb, dtype=np.float32) / 255 * alpha, alpha], axis=-1)


def resized(picture: Pixels, side: int) -> Pixels:
    """The same smaller (or larger), premultiplied throughout."""
    planes = [
        Image.fromarray(picture[..., channel]).resize((side, side), Image.Resampling.LANCZOS) for channel in range(4)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1).clip(0, 1).astype(np.float32)


def laid(canvas: Pixels, picture: Pixels, x: int, y: int) -> None:
    """Lay a picture over an opaque canvas ``(side, side, 3)`` with its corner at x, y; what sticks out is cut."""
    height, width = canvas.shape[:2]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + picture.shape[1], width), min(y + picture.shape[0], height)
    part = picture[top - y : bottom - y, left - x : right - x]
    canvas[top:bottom, left:right] *= 1 - part[..., 3:]
    canvas[top:bottom, left:right] += part[..., :3]


def ground(name: str, side: int) -> Pixels:
    """An opaque canvas ``(side, side, 3)`` of one colour."""
    return np.tile(np.array(GROUNDS[name], dtype=np.float32) / 255, (side, side, 1))
