"""What a picture's pixels say: the colour of its ground and of what stands on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from streamapp.training.pocket.pictures import GROUNDS, HUES

#: Pixels of the frame that counts as ground.
FRAME = 4


def ground_of(picture: Image.Image) -> str:
    """The ground whose colour is nearest to the frame's median."""
    pixels = _pixels(picture)
    sides = [pixels[:FRAME], pixels[-FRAME:], pixels[:, :FRAME], pixels[:, -FRAME:]]
    frame = np.concatenate([side.reshape(-1, 3) for side in sides])
    middle = np.median(frame, axis=0)
    return min(GROUNDS, key=lambda name: float(np.abs(middle - np.array(GROUNDS[name])).sum()))


def colour_of(picture: Image.Image) -> str | None:
    """The colour word that most of the coloured pixels on the ground have; None when hardly any is coloured."""
    pixels = _pixels(picture)
    ground = np.array(GROUNDS[ground_of(picture)])
    hsv = np.asarray(picture.convert("RGB").convert("HSV"), dtype=np.float32)
    hue, saturation, value = hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255
    stands = (np.abs(pixels - ground).sum(axis=-1) > 90) & (saturation > 0.25) & (value > 0.2)
    if stands.sum() < 60:
        return None
    votes = dict.fromkeys(HUES, 0.0)
    for name, centre in HUES.items():
        near = np.abs((hue - centre + 180) % 360 - 180)
        votes[name] = float((saturation * np.exp(-((near / 22) ** 2)))[stands].sum())
    # Pink is a pale red as well as a hue of its own.
    pale = stands & (np.abs((hue - 355 + 180) % 360 - 180) < 20) & (saturation < 0.55) & (value > 0.7)
    moved = float(saturation[pale].sum())
    votes["pink"] += moved
    votes["red"] -= moved
    return max(votes, key=lambda name: votes[name])


def spread(pictures: list[Image.Image]) -> float:
    """Mean absolute difference between pictures of one prompt, in [0, 1]: how far seeds differ."""
    stack = np.stack([_pixels(picture) for picture in pictures]) / 255
    pairs = [np.abs(stack[a] - stack[b]).mean() for a in range(len(stack)) for b in range(a)]
    return float(np.mean(pairs))


def _pixels(picture: Image.Image) -> npt.NDArray[np.float32]:
    pixels: npt.NDArray[np.float32] = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return pixels
