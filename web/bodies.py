"""The JSON body of a submit request in its normal form, and sentences about what is wrong with one."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from streamapp.errors import InvalidRequest
from streamapp.generation import LoraRef, Size
from streamapp.models.sizes import parse_size
from streamapp.submit import Submission
from streamapp.submit.controls import ControlAsked
from web.fields import Control, Generate, Lora, Params

#: What other services call a field of ours.
SYNONYMS = {
    "prompt": "text",
    "negative_prompt": "negative_text",
    "guidance_scale": "cfg_scale",
    "guidance": "cfg_scale",
    "num_inference_steps": "steps",
    "size": "resolution",
    "n": "batch_size",
    "num_images": "batch_size",
    "lora": "loras",
    "checkpoint": "model",
    "sampler_name": "sampler",
    "webhook": "callback_url",
    "image": "init_image",
    "image_url": "init_image",
    "mask_image": "mask",
    "mask_url": "mask",
    "mask_blur": "mask_feather",
    "denoising_strength": "strength",
    "controlnet": "controls",
    "control": "controls",
    "controlnets": "controls",
}
#: The same of a ControlNet's fields.
CONTROL_SYNONYMS = {
    "name": "model",
    "weight": "scale",
    "conditioning_scale": "scale",
    "guidance_start": "start",
    "guidance_end": "end",
    "module": "preprocessor",
}
#: Asked for by users and on the way; refused until they do something.
PLANNED = frozenset(
    [
        "hires_fix",
        "output_format",
        "postprocess",
        "upscale",
    ]
)


def parse(body: Mapping[str, Any]) -> Generate:
    """The body as a value.

    Raises:
        InvalidRequest: names each field that is wrong, unknown or not built yet.
    """
    try:
        return Generate.model_validate(body)
    except ValidationError as error:
        found = [sentence(item) for item in error.errors(include_url=False)]
        errors = [{"field": field, "message": message} for field, message in found[:20]]
        raise InvalidRequest(
            "; ".join(message for _, message in found[:5]), field=found[0][0], errors=errors
        ) from error


def submission(body: Generate, request: Mapping[str, Any], *, key: str | None, trace: str | None) -> Submission:
    """The body in the normal form; ``key`` is the idempotency key of the header.

    Raises:
        InvalidRequest: fields that contradict each other.
    """
    params = body.params
    if key is not None and body.idempotency_key not in (None, key):
        raise InvalidRequest(
            "idempotency_key and the header Idempotency-Key differ: send one of them", field="idempotency_key"
        )
    if key is not None and not 1 <= len(key) <= 200:
        raise InvalidRequest("the header Idempotency-Key must have 1 to 200 characters", field="idempotency_key")
    key = key or body.idempotency_key
    # Databases differ on blanks at the end, and a header may hold bytes that are no characters.
    if key is not None and (key != key.strip() or not key.isprintable()):
        raise InvalidRequest(
            "idempotency_key must be of printable characters, without blanks at its ends", field="idempotency_key"
        )
    return Submission(
        text=body.text,
        model=params.model,
        fallback_model=params.fallback_model,
        loras=_loras(params),
        size=_size(params),
        strict_size=params.strict_size,
        style=params.style,
        steps=params.steps,
        guidance=params.cfg_scale,
        true_cfg=params.true_cfg_scale,
        sampler=params.sampler,
        clip_skip=params.clip_skip,
        seed=None if params.seed == -1 else params.seed,
        negative=params.negative_text,
        init_image=params.init_image,
        mask=params.mask,
        strength=params.strength,
        resize_mode=params.resize_mode,
        mask_feather=params.mask_feather,
        controls=tuple(ControlAsked(**control.model_dump()) for control in params.controls or ()),
        n=params.batch_size,
        prefetch=body.prefetch,
        priority=body.priority,
        callback_url=body.callback_url,
        idempotency_key=key,
        provenance=body.provenance,
        trace=trace,
        request=request,
    )


def _size(params: Params) -> Size | None:
    given = None if params.resolution is None else parse_size(params.resolution)
    if params.width is None and params.height is None:
        return given
    if params.width is None or params.height is None:
        raise InvalidRequest("width and height go together: give both, or resolution", field="width")
    size = Size(width=params.width, height=params.height)
    if given is not None and given != size:
        raise InvalidRequest(f"resolution says {given}, width and height say {size}: give one", field="resolution")
    return size


def _loras(params: Params) -> tuple[LoraRef, ...]:
    if params.lora_name is None:
        if params.lora_weight is not None:
            raise InvalidRequest("lora_weight needs lora_name", field="lora_weight")
        return tuple(LoraRef(name=lora.name, weight=lora.weight) for lora in params.loras or ())
    if params.loras:
        raise InvalidRequest("give lora_name, or several in loras, not both", field="loras")
    return (LoraRef(name=params.lora_name, weight=1.0 if params.lora_weight is None else params.lora_weight),)


def sentence(item: Any) -> tuple[str, str]:
    """One finding of pydantic: the field, and what to change."""
    place = tuple(part for part in item["loc"] if isinstance(part, int) or not part.startswith("function-"))
    field = ".".join(str(part) for part in place) or "body"
    if item["type"] == "extra_forbidden":
        return field, _unknown(place, field)
    if item["type"] == "missing":
        return field, f"{field} is missing"
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "must be", 1)
    given = repr(item["input"])
    shown = given if len(given) <= 60 else f"{given[:59]}…"
    return field, f"{field}: {message[:1].lower()}{message[1:]}, not {shown}"


def _unknown(place: tuple[Any, ...], field: str) -> str:
    """A field that is not ours is refused by name, never ignored."""
    name = str(place[-1])[:60]
    field = field[:100]
    if name in PLANNED:
        return f"{field} is planned, but not built yet: leave it out"
    top, inner = set(Generate.model_fields), set(Params.model_fields)
    of_control = len(place) > 2 and place[1] == "controls"
    known = {1: top, 2: inner}.get(len(place), set((Control if of_control else Lora).model_fields))
    meant = (CONTROL_SYNONYMS if of_control else SYNONYMS).get(name, name)
    if meant in known:
        return f"{field} is not a field here: it is called {meant}"
    if len(place) == 1 and meant in inner:
        return f"{field} is not a field here: it belongs into params, as {meant}"
    if len(place) == 2 and meant in top:
        return f"{field} is not a field here: it belongs beside params, as {meant}"
    near = get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{field} is not a field here; {hint}"
