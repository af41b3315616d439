"""The JSON body of a submit request: its fields, and sentences about what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from streamapp.errors import InvalidRequest
from streamapp.generation import MAX_SEED, LoraRef, Size
from streamapp.models.sizes import MAX_DELIVERED, MIN_DELIVERED, parse_size
from streamapp.submit import ClipSkip, Feather, Guidance, ResizeMode, Steps, Strength, Submission

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
}
#: Asked for by users and on the way; refused until they do something.
PLANNED = frozenset(
    [
        "controlnet",
        "hires_fix",
        "output_format",
        "postprocess",
        "upscale",
    ]
)


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number")
    return value


def _priority(value: Any) -> Any:
    """``P2``, ``"2"`` or ``2``."""
    match = re.fullmatch(r"[Pp]?([0-3])", value) if isinstance(value, str) else None
    if match:
        return int(match[1])
    if isinstance(value, bool) or value not in (0, 1, 2, 3):
        raise ValueError("must be P0, P1, P2 or P3 (or 0 to 3)")
    return int(value)


Number = BeforeValidator(_no_flag)
PriorityName = Annotated[
    int,
    BeforeValidator(_priority),
    WithJsonSchema({"anyOf": [{"enum": ["P0", "P1", "P2", "P3"]}, {"type": "integer", "minimum": 0, "maximum": 3}]}),
]
Side = Annotated[int, Number, Field(ge=MIN_DELIVERED, le=MAX_DELIVERED)]


class Lora(BaseModel):
    """A LoRA by its registered name."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    weight: Annotated[float, Number, Field(ge=-2, le=2)] = 1.0


class Params(BaseModel):
    """How it is drawn; what is left out is chosen by the model."""

    model_config = ConfigDict(extra="forbid")

    resolution: str | None = Field(None, description="Width by height in pixels.", examples=["512x512", "512×512"])
    width: Side | None = Field(None, description="With `height`, instead of `resolution`.")
    height: Side | None = Field(None, description="With `width`, instead of `resolution`.")
    strict_size: bool = Field(False, description="Refuse a size the model cannot draw, instead of resizing.")
    style: str | None = Field(None, max_length=100, description="Adds the words of a style.", examples=["watercolor"])
    steps: Annotated[Steps, Number] | None = Field(None, description="Denoising steps.")
    cfg_scale: Annotated[Guidance, Number] | None = Field(None, description="How strictly the text is followed.")
    true_cfg_scale: Annotated[Guidance, Number] | None = Field(
        None,
        description="Of models that take `cfg_scale` as an input (Flux): above 1, how strictly `negative_text` is "
        "avoided.",
    )
    sampler: str | None = Field(None, max_length=100, examples=["DPM++ 2M"])
    clip_skip: Annotated[ClipSkip, Number] | None = Field(
        None, description="Read prompts from this layer of the text encoder, 1 the last, as A1111 counts."
    )
    seed: Annotated[int, Number, Field(ge=-1, le=MAX_SEED)] | None = Field(
        None, description="Picture i uses seed + i. -1, or nothing, draws one."
    )
    negative_text: str | None = Field(None, description="What the pictures shall not show.")
    init_image: str | None = Field(
        None,
        min_length=1,
        description="The picture to start from: base64 or a `data:` address of a PNG, JPEG or WebP file, its `http(s)` "
        "address, or `sha256:…` as an upload or a recipe names it. Without `resolution` its size is delivered.",
    )
    mask: str | None = Field(
        None, min_length=1, description="White where the picture is drawn anew, of its size; given like `init_image`."
    )
    strength: Annotated[Strength, Number] | None = Field(
        None, description="Share of the steps that is done from `init_image`: 0.8, with a mask 1, unless given."
    )
    resize_mode: ResizeMode | None = Field(
        None, description="How `init_image` is brought to `resolution`: cut off, edges drawn out, or stretched."
    )
    mask_feather: Annotated[Feather, Number] | None = Field(
        None, description="Pixels over which the mask's edge fades in the delivered picture, 4 unless given."
    )
    batch_size: Annotated[int, Number, Field(ge=1)] = Field(1, description="How many pictures.")
    model: str | None = Field(None, min_length=1, max_length=200, examples=["pocket"])
    fallback_model: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Draws instead when `model` fails for good; `none`: nothing does.",
    )
    lora_name: str | None = Field(None, min_length=1, max_length=200, description="One LoRA; `loras` takes several.")
    lora_weight: Annotated[float, Number, Field(ge=-2, le=2)] | None = None
    loras: list[Lora] | None = None


class Generate(BaseModel):
    """What ``POST /api/v1/image/generate`` takes. The recipe of a picture is such a body."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": "a cute panda", "params": {"resolution": "512x512", "seed": 7}}]},
    )

    text: str = Field(description="What the picture shall show, in any language.", examples=["a cute panda"])
    params: Params = Field(default_factory=Params)
    priority: PriorityName = Field(2, description="P0 is most urgent, P3 is batch work.", examples=["P1"])
    prefetch: bool = Field(
        True,
        description="Wait, as `fetching`, while a model or LoRA that is not here is fetched; false: 404 or 409.",
    )
    callback_url: str | None = Field(None, max_length=2_000, description="Told when the task has ended.")
    idempotency_key: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="The same key never makes a second task; also a header. Printable, without blanks at its ends.",
    )
    provenance: dict[str, Any] | None = Field(
        None, description="From a recipe: refused when model or LoRAs are others by now."
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
    known = {1: top, 2: inner}.get(len(place), set(Lora.model_fields))
    meant = SYNONYMS.get(name, name)
    if meant in known:
        return f"{field} is not a field here: it is called {meant}"
    if len(place) == 1 and meant in inner:
        return f"{field} is not a field here: it belongs into params, as {meant}"
    if len(place) == 2 and meant in top:
        return f"{field} is not a field here: it belongs beside params, as {meant}"
    near = get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{field} is not a field here; {hint}"
