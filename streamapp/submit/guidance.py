"""What a family's way of guiding and sampling allows: refused or said here, before a row exists."""

from __future__ import annotations

from typing import NamedTuple

from streamapp.db import ModelRow
from streamapp.engine.errors import EngineError
from streamapp.engine.names import AUTO, sampler_name
from streamapp.errors import InvalidRequest
from streamapp.models.families import Traits, family


class Guidance(NamedTuple):
    """How strictly the text is followed, the scale of a branch of its own beside it, and sentences for the answer."""

    scale: float
    true_cfg: float
    notes: tuple[str, ...]


def guidance_of(
    scale: float | None, true_cfg: float | None, negative: str | None, row: ModelRow, traits: Traits
) -> Guidance:
    """What is drawn with, of what was asked for.

    Raises:
        InvalidRequest: ``true_cfg_scale`` where there is no such thing, or a negative prompt that nothing would read.
    """
    kind = family(row.family)
    if true_cfg is not None and kind.guided:
        raise InvalidRequest(
            f"true_cfg_scale is for models that take guidance as an input; {row.name} has cfg_scale",
            field="true_cfg_scale",
        )
    if negative and not kind.guided and not (true_cfg or 1.0) > 1:
        raise InvalidRequest(
            f"{row.name} reads no negative_text: leave it out, or send true_cfg_scale above 1 (such as 4), which takes "
            "twice the time",
            field="negative_text",
        )
    branch = true_cfg if true_cfg is not None and negative else 1.0
    notes = () if true_cfg is None or negative else ("true_cfg_scale was left out: there is no negative_text",)
    if str(row.traits.get("variant")) in kind.unguided:
        if scale:
            notes = (*notes, f"cfg_scale {scale:g} was left out: {row.name} draws without guidance")
        return Guidance(0.0, branch, notes)
    return Guidance(traits.guidance if scale is None else scale, branch, notes)


def sampler_of(asked: str | None, row: ModelRow, traits: Traits) -> str:
    """The sampler to draw with.

    Raises:
        InvalidRequest: it is not known, or does not draw this family.
    """
    try:
        name = sampler_name(traits.sampler if asked is None else asked)
    except EngineError as error:
        raise InvalidRequest(error.message, **{**error.details, "field": "sampler"}) from error
    able = family(row.family).samplers
    if able and name not in (*able, AUTO):
        raise InvalidRequest(
            f"{row.name} is drawn by flow matching, which {name} does not do: use {', '.join(able)}",
            field="sampler",
            known=list(able),
        )
    return name


def steps_left(steps: int, strength: float, family_name: str) -> int:
    """Steps that are done from a picture: rounded down, by flow matching up."""
    if family(family_name).flow:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return int(steps * strength)
