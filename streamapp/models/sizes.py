"""Which size to draw when another is asked for, and how the drawn picture fills the delivered one.

A checkpoint draws well only near the sizes it was trained at. What lies outside is drawn at the nearest shape
that it can, the aspect ratio first, and enlarged (or reduced) afterwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from streamapp.errors import InvalidRequest
from streamapp.generation import Size
from streamapp.models.families import Traits

MIN_DELIVERED, MAX_DELIVERED = 16, 4096
#: Up to this difference of aspect ratios the picture is stretched: nobody sees it.
STRETCH = 0.03
#: Weight of a wrong aspect ratio against a wrong area, both as logarithms.
RATIO_WEIGHT = 20.0


class Fit(NamedTuple):
    """The size the denoiser draws, the size the user receives, and sentences for the answer and the recipe."""

    drawn: Size
    delivered: Size
    notes: tuple[str, ...]


def parse_size(text: str) -> Size:
    """``512x512``, ``512×512`` or ``512*512``, width first, as pixels.

    Raises:
        InvalidRequest: when it is not of that form.
    """
    match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×*]\s*(\d{1,5})\s*", text, re.ASCII)
    if match is None:
        raise InvalidRequest(f"resolution {text[:40]!r} is not WIDTHxHEIGHT, such as 512x512", field="resolution")
    return Size(width=int(match[1]), height=int(match[2]))


def fit(asked: Size, traits: Traits, strict: bool = False, *, model: str = "the model") -> Fit:
    """Where ``asked`` can be drawn it is; else the nearest shape that can, enlarged or reduced to ``asked``.

    Raises:
        InvalidRequest: beyond what is ever delivered, or with ``strict`` when it cannot be drawn as asked;
            names the sizes that can.
    """
    for side in (asked.width, asked.height):
        if not MIN_DELIVERED <= side <= MAX_DELIVERED:
            raise InvalidRequest(
                f"{asked}: each side must be {MIN_DELIVERED} to {MAX_DELIVERED} pixels", field="resolution"
            )
    if can_draw(asked, traits):
        return Fit(asked, asked, ())
    able = describe(traits)
    if strict:
        raise InvalidRequest(
            f"{model} cannot draw {asked}: it draws {able}; ask for such a size, or leave strict_size out to have "
            f"the picture drawn at {nearest(asked, traits)} and resized",
            field="resolution",
            native=f"{traits.native}x{traits.native}",
        )
    drawn = nearest(asked, traits)
    inner = placement(drawn, asked)
    how = "enlarged" if inner.width > drawn.width else "reduced" if inner.width < drawn.width else "set"
    note = f"{model} draws {able}, so the picture was drawn at {drawn} and {how} to {inner}"
    if inner != asked:
        note += f"; its edges were continued to fill {asked}"
    return Fit(drawn, asked, (note,))


def can_draw(size: Size, traits: Traits) -> bool:
    """Whether a checkpoint with these traits draws exactly this size well."""
    sides = (size.width, size.height)
    return (
        all(traits.min_side <= side <= traits.max_side and side % traits.size_step == 0 for side in sides)
        and size.width * size.height <= traits.max_pixels
    )


def nearest(asked: Size, traits: Traits) -> Size:
    """The drawable size that comes closest to ``asked``: aspect ratio first, then area."""
    pixels = asked.width * asked.height
    # A thumbnail is drawn at the native size and reduced, not at the smallest size the model bears.
    area = math.log(pixels if pixels >= traits.min_side**2 else traits.native**2)
    ratio = math.log(asked.width / asked.height)

    def distance(size: Size) -> tuple[float, int]:
        wrong_ratio = abs(math.log(size.width / size.height) - ratio)
        wrong_area = abs(math.log(size.width * size.height) - area)
        # Of two that are equally far the larger one: it loses nothing.
        return round(RATIO_WEIGHT * wrong_ratio + wrong_area, 9), -size.width * size.height

    return min(_candidates(asked, traits), key=distance)


def _candidates(asked: Size, traits: Traits) -> Iterator[Size]:
    """For each drawable width the heights around the asked aspect ratio that can be drawn with it."""
    step = traits.size_step
    first, last = math.ceil(traits.min_side / step), traits.max_side // step
    for across in range(first, last + 1):
        most = min(last, traits.max_pixels // (across * step * step))
        if most < first:
            continue
        exact = across * asked.height / asked.width
        for up in {min(max(rounded, first), most) for rounded in (math.floor(exact), math.ceil(exact))}:
            yield Size(width=across * step, height=up * step)


def placement(drawn: Size, delivered: Size) -> Size:
    """The size that ``drawn`` is resized to inside ``delivered``: all of it when the aspect ratios nearly agree."""
    across, up = delivered.width / drawn.width, delivered.height / drawn.height
    if abs(math.log(across / up)) <= STRETCH:
        return delivered
    scale = min(across, up)
    return Size(
        width=min(delivered.width, max(1, round(drawn.width * scale))),
        height=min(delivered.height, max(1, round(drawn.height * scale))),
    )


def describe(traits: Traits) -> str:
    """The drawable sizes in words, for answers."""
    words = f"sides of {traits.min_side} to {traits.max_side} pixels in steps of {traits.size_step}"
    if traits.max_pixels < traits.max_side**2:
        words += f" with at most {traits.max_pixels} pixels in all"
    return words
