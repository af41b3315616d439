"""The model that draws a task when its own fails for good: chosen and checked at submit, like everything else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from streamapp.db import LoraRow, ModelRow
from streamapp.errors import InvalidRequest
from streamapp.generation import Fallback, GenerationParams
from streamapp.models import quarantine, sizes
from streamapp.models.families import Traits, traits_of
from streamapp.settings import Settings
from streamapp.submit.guidance import guidance_of, sampler_of
from streamapp.telemetry import get_logger

if TYPE_CHECKING:
    from streamapp.submit import Submission

log = get_logger(__name__)
#: What a request says that wants its own model or nothing.
NONE = "none"
Find = Callable[[str], Awaitable[ModelRow]]


async def with_fallback(
    asked: Submission,
    params: GenerationParams,
    model: ModelRow,
    loras: Sequence[LoraRow],
    settings: Settings,
    find: Find,
) -> GenerationParams:
    """``params`` with the fallback that the request, the model (trait ``fallback_model``) or a setting names.

    One that the request names must fit; one that the operator named and that does not fit this request is left out.

    Raises:
        InvalidRequest: it is not registered or served, is the model itself, or cannot draw what is asked for.
    """
    name = asked.fallback_model
    if name == NONE:
        return params
    named = name is not None
    name = name or model.traits.get("fallback_model") or settings.fallback_model(model.family)
    if not name or (name == model.name and not named):
        return params
    try:
        if name == model.name:
            raise InvalidRequest(f"{name} is the model itself")
        fallback = resolve(asked, params, await find(str(name)), loras)
    except InvalidRequest as error:
        if named:
            details = {**error.details, "field": "fallback_model"}
            raise InvalidRequest(f"fallback_model: {error.message}", **details) from error
        log.debug(error.message, action="fallback_unfit", model=model.name, fallback=name)
        return params
    return params.model_copy(update={"fallback": fallback})


def unless_quarantined(params: GenerationParams, model: ModelRow) -> GenerationParams:
    """``params``, for the fallback model when its own one is in quarantine.

    Raises:
        Quarantined: it is, and there is no fallback.
    """
    if (reason := quarantine.why(model)) is None:
        return params
    if params.fallback is None:
        quarantine.refuse(model)
    return params.fall_back(f"in quarantine: {reason}")


def resolve(asked: Submission, params: GenerationParams, row: ModelRow, loras: Sequence[LoraRow]) -> Fallback:
    """Everything that differs with the other model; what the request says itself stays as it is."""
    for lora in loras:
        if lora.family != row.family:
            raise InvalidRequest(f"LoRA {lora.name} fits family {lora.family}, and {row.name} is of {row.family}")
    if params.embeddings and row.family != params.family:
        words = ", ".join(each.name for each in params.embeddings)
        raise InvalidRequest(f"learned words ({words}) fit family {params.family}, and {row.name} is of {row.family}")
    if params.controls and row.family != params.family:
        nets = ", ".join(each.name for each in params.controls)
        raise InvalidRequest(f"ControlNets ({nets}) fit family {params.family}, and {row.name} is of {row.family}")
    if row.traits.get("inpainting") and (params.start is None or params.start.mask is None):
        raise InvalidRequest(f"{row.name} is an inpainting model, and there is no mask")
    traits = traits_of(row.family, row.traits)
    guidance = guidance_of(asked.guidance, asked.true_cfg, asked.negative, row, traits)
    size = sizes.fit(params.delivered, traits, asked.strict_size, model=row.name)
    return Fallback(
        model=row.name,
        family=row.family,
        delivered=size.delivered,
        drawn=size.drawn,
        steps=traits.steps if asked.steps is None else params.steps,
        guidance=guidance.scale,
        true_cfg=guidance.true_cfg,
        sampler=sampler_of(asked.sampler, row, traits),
        clip_skip=clip_skip_of(asked.clip_skip, traits, row.name),
        notes=(*size.notes, *guidance.notes),
    )


def clip_skip_of(asked: int | None, traits: Traits, model: str) -> int:
    """The clip skip to draw with: what was asked for, where the model's text encoder has it.

    Raises:
        InvalidRequest: the encoder has fewer layers.
    """
    if asked is None:
        return traits.clip_skip
    if asked > traits.clip_skips:
        raise InvalidRequest(f"clip_skip is {asked}, {model} takes 1 to {traits.clip_skips}", field="clip_skip")
    return asked
