"""What a user asked for, in its one normal form: kept in the task row, sent to the worker, echoed in the recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

#: P0 and P1 travel on the family's urgent topic; P3 is batch work.
Priority = Annotated[int, Field(ge=0, le=3)]
MAX_SEED = 2**32 - 1
#: Widest soft edge of a mask, in pixels of the delivered picture.
MAX_FEATHER = 64


class LoraRef(BaseModel):
    """A LoRA by its registered name, with the weight its effect is scaled by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    weight: float = Field(1.0, ge=-2, le=2)


class EmbeddingRef(BaseModel):
    """A learned word (textual inversion) by its registered name, which a prompt holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str


class Size(BaseModel):
    """Pixels, width by height."""

    model_config = ConfigDict(frozen=True)

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class InputRef(BaseModel):
    """A picture that was sent in: the SHA-256 (hex) of its file, which is in the storage, and its size in pixels."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int
    height: int

    @property
    def name(self) -> str:
        """How requests and recipes name it."""
        return f"sha256:{self.digest}"


class ControlRef(BaseModel):
    """A ControlNet by its registered name, with the picture that it steers by.

    ``scale`` (0 to 2) is how strongly; between the shares ``start`` and ``end`` of the steps it does. ``preprocessor``
    is what makes of the picture what it was trained on; ``mode`` is the kind of the picture for a union of ControlNets.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    image: InputRef
    scale: float = Field(1.0, ge=0, le=2)
    start: float = Field(0.0, ge=0, le=1)
    end: float = Field(1.0, ge=0, le=1)
    preprocessor: Literal["none", "canny"] = "none"
    mode: int | None = None


class Start(BaseModel):
    """The picture that a task starts from.

    ``mask`` is white where it is drawn anew; all else stays as it is, but for a soft edge of ``feather`` pixels of the
    delivered picture. ``strength`` (above 0, at most 1) is the share of the steps that is done. ``resize`` is how the
    picture is brought to the delivered size: see :func:`streamapp.engine.images.resized`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: InputRef
    mask: InputRef | None = None
    strength: float = Field(gt=0, le=1)
    resize: Literal["crop", "fill", "stretch"] = "crop"
    feather: int = Field(4, ge=0, le=MAX_FEATHER)


class Fallback(BaseModel):
    """Another model for a task whose own one fails for good, with everything it needs resolved at submit."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    family: str
    delivered: Size
    drawn: Size
    steps: int
    guidance: float
    true_cfg: float = 1.0
    sampler: str
    clip_skip: int = 1
    notes: tuple[str, ...] = ()


class Replaced(BaseModel):
    """The model that was asked for and did not draw, and why."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    family: str
    reason: str


class GenerationParams(BaseModel):
    """Everything that decides the pictures of a task, complete: no default is left open after submit.

    ``prompt`` already holds the words of ``style``; ``text`` is what the user typed. ``drawn`` is what the
    denoiser draws, ``delivered`` what the user receives (enlarged when the model cannot draw that large).
    Image ``i`` of ``n`` uses ``seed + i``. ``true_cfg`` above 1 is the scale of the branch that a negative prompt takes
    where ``guidance`` is an input of the only one. ``kind`` says whether there is a picture to start from, and a mask.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["txt2img", "img2img", "inpaint"] = "txt2img"
    text: str
    prompt: str
    negative_prompt: str | None = None
    style: str | None = None
    model: str
    family: str
    loras: tuple[LoraRef, ...] = ()
    embeddings: tuple[EmbeddingRef, ...] = ()
    controls: tuple[ControlRef, ...] = ()
    delivered: Size
    drawn: Size
    steps: int
    guidance: float
    true_cfg: float = 1.0
    sampler: str
    clip_skip: int = 1
    seed: int = Field(ge=0, le=MAX_SEED)
    n: int = Field(1, ge=1)
    start: Start | None = None
    notes: tuple[str, ...] = ()
    fallback: Fallback | None = None
    instead_of: Replaced | None = None

    @property
    def added(self) -> tuple[str, ...]:
        """The LoRAs and ControlNets, by name."""
        return (*(lora.name for lora in self.loras), *(control.name for control in self.controls))

    @property
    def denoised(self) -> int:
        """Steps that are really done: fewer than ``steps`` where a picture is only partly redrawn."""
        return self.steps if self.start is None else max(1, int(self.steps * self.start.strength))

    def fall_back(self, reason: str) -> GenerationParams:
        """The same task for its fallback model; ``reason`` says why, also in the notes."""
        other = self.fallback
        if other is None:
            raise ValueError("there is no fallback model")
        note = f"drawn with {other.model} instead of {self.model}: {reason}"
        return self.model_copy(
            update={
                **other.model_dump(exclude={"delivered", "drawn"}),
                "delivered": other.delivered,
                "drawn": other.drawn,
                "notes": (*other.notes, note),
                "fallback": None,
                "instead_of": Replaced(model=self.model, family=self.family, reason=reason),
            }
        )
