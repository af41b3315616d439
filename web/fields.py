"""The fields of a submit request."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from streamapp.engine.job import MAX_CONTROLS, MAX_SCALE
from streamapp.generation import MAX_SEED
from streamapp.models.sizes import MAX_DELIVERED, MIN_DELIVERED
from streamapp.submit import ClipSkip, Feather, Guidance, ResizeMode, Steps, Strength
from streamapp.submit.controls import Preprocessor, Share


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


class Control(BaseModel):
    """A ControlNet by its registered name, and the picture that it steers by."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=200)
    image: str = Field(min_length=1, description="Given like `init_image`; brought to the drawn size.")
    scale: Annotated[float, Number, Field(ge=0, le=MAX_SCALE)] = Field(1.0, description="How strongly it steers.")
    start: Annotated[Share, Number] = Field(0.0, description="Share of the steps after which it begins.")
    end: Annotated[Share, Number] = Field(1.0, description="Share of the steps after which it ends.")
    preprocessor: Preprocessor = Field(
        "none", description="What makes of `image` what it was trained on; `depth` and `pose` need weights."
    )
    mode: Annotated[int, Number, Field(ge=0, le=63)] | None = Field(
        None, description="The kind of `image`, for a union of ControlNets."
    )


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
    controls: list[Control] | None = Field(
        None, max_length=MAX_CONTROLS, description="ControlNets, each with its picture; they steer together."
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
