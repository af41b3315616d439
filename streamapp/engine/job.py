"""What the engine is asked for: plain values, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from streamapp.engine.errors import EngineError
from streamapp.engine.names import sampler_name
from streamapp.engine.preprocess import raw

MAX_ADAPTERS = 5
MAX_CONTROLS = 5
MAX_SCALE = 2.0
MAX_STEPS = 150
MAX_GUIDANCE = 30.0
MAX_IMAGES = 100
MAX_CLIP_SKIP = 12


@dataclass(frozen=True)
class LoRA:
    """A loaded adapter by name, with the weight its effect is scaled by (−2…2)."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Control:
    """A loaded ControlNet by name and its picture, of the job's size and preprocessed already.

    ``image`` is what :func:`~streamapp.engine.preprocess.rgb` reads; ``scale`` (0…2) is how strongly it steers;
    ``start`` and ``end`` are shares of the denoising, 0..1, between which it does. ``mode`` is the kind of the picture
    for a union of ControlNets (Flux).
    """

    model: str
    image: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None


@dataclass(frozen=True)
class Job:
    """One request: ``num_images`` samples that share everything but their seed (image ``i`` uses ``seed + i``).

    ``width`` and ``height`` are pixels. ``output`` is ``pil``, ``rgb`` (:class:`~streamapp.engine.events.Picture`) or
    ``latent`` (the diffusers pipeline's layout, ``(4, height / 8, width / 8)``). ``true_cfg_scale`` above 1 gives Flux,
    whose guidance is an input, the second branch that a negative prompt needs; other families take 1 only.

    ``schedule`` spreads the steps over the noise otherwise than the ``sampler`` does by itself: one of
    :data:`~streamapp.engine.names.SCHEDULES`, which a sampler's name may also end in.

    ``embeddings`` are learned words that its prompts rely on: it is refused while one is not loaded.

    ``image`` is a picture to start from and ``mask_image`` is white where it is drawn anew, both of the job's size and
    what :func:`~streamapp.engine.preprocess.rgb` reads; ``strength`` (above 0, at most 1) is the share of the steps
    that is done, 0.8 unless given and 1 with a mask. :mod:`streamapp.engine.images` resizes, pads and crops them.
    """

    model: str
    prompt: str = ""
    negative_prompt: str | None = None
    width: int = 512
    height: int = 512
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    true_cfg_scale: float = 1.0
    sampler: str = "Auto"
    schedule: str | None = None
    seed: int = 0
    num_images: int = 1
    clip_skip: int = 1
    loras: tuple[LoRA, ...] | list[LoRA] = ()
    embeddings: tuple[str, ...] = ()
    image: Any = None
    mask_image: Any = None
    strength: float | None = None
    controls: tuple[Control, ...] | list[Control] = ()
    output: Literal["pil", "rgb", "latent"] = "pil"

    def check(self) -> Job:
        """The job, its pictures as raw RGB, if its values are within the outer limits of every family.

        Its schedule is in the sampler's name then.

        Raises:
            EngineError: ``invalid_job``, ``unknown_sampler`` or ``unknown_schedule``, naming the field and what to
                change.
        """
        for name, value in vars(self).items():
            _typed(name, value)
        _within("width", self.width, 64, 2048)
        _within("height", self.height, 64, 2048)
        _within("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _within("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
        _within("true_cfg_scale", self.true_cfg_scale, 0, MAX_GUIDANCE)
        _within("num_images", self.num_images, 1, MAX_IMAGES)
        _within("seed", self.seed, 0, 2**63 - 1)
        if len(self.loras) > MAX_ADAPTERS:
            raise _invalid("loras", f"{len(self.loras)} adapters are named, at most {MAX_ADAPTERS} can be mixed")
        for lora in self.loras:
            _number("loras", lora.weight, f"weight of LoRA {lora.name}")
            _within(f"weight of LoRA {lora.name}", lora.weight, -2, 2)
        if len({lora.name for lora in self.loras}) < len(self.loras):
            raise _invalid("loras", "an adapter is named twice; add the weights up instead")
        if self.mask_image is not None and self.image is None:
            raise _invalid("mask_image", "a mask needs the image it belongs to")
        if self.strength is not None and self.image is None:
            raise _invalid("strength", "strength says how far an image is redrawn; give the image or leave it out")
        if self.strength is not None and not 0 < self.strength <= 1:  # also refuses NaN
            raise _invalid("strength", f"strength is {self.strength}, it must be above 0 and at most 1")
        _within("clip_skip", self.clip_skip, 1, MAX_CLIP_SKIP)
        sampler = sampler_name(self.sampler, self.schedule)
        controls = _checked(self.controls)
        image, mask = (None if each is None else raw(each, what) for each, what in self._pictures())
        return replace(self, sampler=sampler, schedule=None, controls=controls, image=image, mask_image=mask)

    def _pictures(self) -> tuple[tuple[Any, str], ...]:
        return (self.image, "image"), (self.mask_image, "mask")

    def require(self, loras: Container[str], controls: Collection[str], embeddings: Container[str]) -> None:
        """Refuse the job when a LoRA, a ControlNet or a learned word that it names is not loaded.

        Raises:
            EngineError: ``unknown_lora``, ``unknown_control`` or ``unknown_embedding``.
        """
        for name in self.embeddings:
            if name not in embeddings:
                message = f"embedding {name!r} is not loaded for {self.model!r}"
                raise EngineError("unknown_embedding", message, field="embeddings")
        for lora in self.loras:
            if lora.name not in loras:
                raise EngineError("unknown_lora", f"LoRA {lora.name!r} is not loaded for {self.model!r}", field="loras")
        for control in self.controls:
            if control.model not in controls:
                message = f"control {control.model!r} is not loaded; loaded: {', '.join(controls) or 'none'}"
                raise EngineError("unknown_control", message, field="controls")


def _checked(controls: Sequence[Control]) -> tuple[Control, ...]:
    """The controls with pictures that cross processes as they are."""
    if len(controls) > MAX_CONTROLS:
        raise _invalid("controls", f"{len(controls)} controls are named, at most {MAX_CONTROLS} can be mixed")
    for control in controls:
        for value in (control.scale, control.start, control.end):
            _number("controls", value, f"scale, start or end of control {control.model}")
        _within(f"scale of control {control.model}", control.scale, 0, MAX_SCALE)
        if not 0 <= control.start < control.end <= 1:
            message = f"control {control.model} starts at {control.start} and ends at {control.end};"
            raise _invalid("controls", f"{message} it must be 0 <= start < end <= 1")
    return tuple(replace(each, image=raw(each.image, f"picture of control {each.model}")) for each in controls)


def one_scale(job: Job, family: str) -> None:
    """Refuse ``true_cfg_scale`` where ``guidance_scale`` has a branch of its own already."""
    if job.true_cfg_scale != 1:
        raise _invalid("true_cfg_scale", f"true_cfg_scale is for flux; {family} has guidance_scale")


def _invalid(field: str, message: str) -> EngineError:
    return EngineError("invalid_job", message, field=field)


_TEXTS = ("model", "prompt", "sampler", "output")
_OPTIONAL_TEXTS = ("negative_prompt", "schedule")
_WHOLE = ("width", "height", "num_inference_steps", "seed", "num_images", "clip_skip")
_NUMBERS = ("guidance_scale", "true_cfg_scale", "strength")
_LISTS: dict[str, type] = {"loras": LoRA, "embeddings": str, "controls": Control}


def _typed(name: str, value: Any) -> None:
    """Refuse what is no value of the field's type: nothing behind this looks again, also not in another process."""
    if name in _TEXTS or (name in _OPTIONAL_TEXTS and value is not None):
        _text(name, value)
    elif name in _WHOLE and (isinstance(value, bool) or not isinstance(value, int)):
        raise _invalid(name, f"{name} is {value!r}, it must be a whole number")
    elif name in _NUMBERS and (name != "strength" or value is not None):
        _number(name, value)
    elif name in _LISTS and not (
        isinstance(value, list | tuple) and all(isinstance(each, _LISTS[name]) for each in value)
    ):
        raise _invalid(name, f"{name} must be a list of {_LISTS[name].__name__}")
    if name == "output" and value not in ("pil", "rgb", "latent"):
        raise _invalid(name, f"output is {value!r}, it must be pil, rgb or latent")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _invalid(name, f"{name} is {value!r}, it must be text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _invalid(name, f"{name} has half of a character (a lone surrogate) at {error.start}") from error


def _number(field: str, value: Any, what: str | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(field, f"{what or field} is {value!r}, it must be a number")


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise _invalid(field, f"{field} is {value}, it must be between {low} and {high}")
