"""Facts about each family of models that are needed without loading one: limits and defaults.

A model's own ``traits`` in the registry override the family's; see :func:`traits_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from streamapp.engine.names import AUTO, FLOW_SAMPLERS
from streamapp.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Traits:
    """What a checkpoint is best used with, and what it can draw.

    Attributes:
        native: side in pixels of the square it was trained at.
        min_side, max_side: shortest and longest side it draws well, pixels.
        max_pixels: largest area it draws, pixels.
        size_step: sides are multiples of this, pixels.
        latent_factor: pixels per latent along a side.
        steps, guidance, sampler: the defaults of a request that leaves them open.
        clip_skip: from which of the text encoder's last layers prompts are read, 1 the last, as A1111 counts.
        clip_skips: how many layers that choice has.
        prompt_tokens: length of one text window, begin and end tokens included.
    """

    native: int
    min_side: int
    max_side: int
    max_pixels: int
    size_step: int = 8
    latent_factor: int = 8
    steps: int = 20
    guidance: float = 7.0
    sampler: str = "DPM++ 2M"
    clip_skip: int = 1
    clip_skips: int = 12
    prompt_tokens: int = 77


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    Attributes:
        traits: of an ordinary checkpoint of it.
        variants: what is other with a checkpoint whose trait ``variant`` names one of these.
        samplers: those it can be drawn with; empty for all.
        flow: whether it is trained by flow matching, where ``strength`` leaves steps rounded up.
        guided: whether guidance takes a second branch of its own; where not, a negative prompt needs
            ``true_cfg_scale``.
        unguided: variants that know no guidance at all.
        encoders: text encoders that learned words have vectors for; 0 where it takes none.
        files: whether single files of it can be drawn, beside diffusers folders.
        pipelines: what the index of such a folder calls its pipeline.
        controlnets: whether ControlNets steer its models.
    """

    name: str
    title: str
    traits: Traits
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samplers: tuple[str, ...] = ()
    flow: bool = False
    guided: bool = True
    unguided: frozenset[str] = frozenset()
    encoders: int = 0
    files: bool = True
    pipelines: tuple[str, ...] = ()
    controlnets: bool = False


def _flow(**own: Any) -> Traits:
    """Traits of a transformer over patches of sixteen pixels, trained by flow matching."""
    return Traits(**{"size_step": 16, "sampler": "Euler", "prompt_tokens": 512, **own})


FAMILIES: Mapping[str, Family] = {
    # Beyond about 768x1024 a checkpoint trained at 512x512 repeats its subject.
    "sd15": Family(
        "sd15",
        "Stable Diffusion 1.x",
        Traits(native=512, min_side=256, max_side=1024, max_pixels=768 * 1024),
        encoders=1,
        pipelines=("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "LatentConsistencyModelPipeline"),
        controlnets=True,
    ),
    # Trained at about one megapixel in forty aspect ratios, the longest of them 4:1; far below it falls apart.
    "sdxl": Family(
        "sdxl",
        "Stable Diffusion XL",
        Traits(native=1024, min_side=512, max_side=2048, max_pixels=1024 * 1536, steps=30, guidance=6.0),
        encoders=2,
        pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"),
        controlnets=True,
    ),
    # Trained at about one megapixel, 3.5 medium up to 1440 pixels a side.
    "sd3": Family(
        "sd3",
        "Stable Diffusion 3",
        _flow(native=1024, min_side=512, max_side=1536, max_pixels=1440 * 1440, steps=28, guidance=4.5),
        variants={"turbo": {"steps": 4, "guidance": 1.0}},
        samplers=FLOW_SAMPLERS,
        flow=True,
        pipelines=("StableDiffusion3Pipeline",),
    ),
    # Its publisher says 0.1 to 2 megapixels.
    "flux": Family(
        "flux",
        "Flux.1",
        _flow(native=1024, min_side=256, max_side=2048, max_pixels=2048 * 1024, steps=28, guidance=3.5, clip_skips=1),
        variants={"schnell": {"steps": 4, "guidance": 0.0}},
        samplers=FLOW_SAMPLERS,
        flow=True,
        guided=False,
        unguided=frozenset({"schnell"}),
        pipelines=("FluxPipeline",),
        controlnets=True,
    ),
    # Its publisher's sizes, from 928x1664 over 1328x1328 to 1664x928; guidance is the pipeline's true_cfg_scale.
    "qwen_image": Family(
        "qwen_image",
        "Qwen-Image",
        _flow(native=1328, min_side=512, max_side=2048, max_pixels=1328 * 1328, steps=50, guidance=4.0, clip_skips=1),
        samplers=FLOW_SAMPLERS,
        flow=True,
        files=False,
        pipelines=("QwenImagePipeline",),
    ),
}


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        InvalidRequest: when it is not known; names those that are.
    """
    found = FAMILIES.get(name)
    if found is None:
        near = get_close_matches(name, FAMILIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(FAMILIES)}"
        raise InvalidRequest(f"family {name!r} is not known{hint}", field="family", known=list(FAMILIES))
    return found


def family_of_file(name: str, kind: str) -> Family:
    """The family of that name, of a single file that is a ``model`` or a ``lora``.

    Raises:
        InvalidRequest: it is not known, or its models are not drawn from single files.
    """
    found = family(name)
    if kind == "model" and not found.files:
        raise InvalidRequest(f"models of family {name} are drawn from diffusers folders only, so far", field="family")
    return found


_FIELDS = frozenset(field.name for field in fields(Traits))


def traits_of(family_name: str, own: Mapping[str, Any] | None = None) -> Traits:
    """The family's traits, those of the variant and the model's own; other keys (licence, words …) are skipped."""
    kind = family(family_name)
    own = own or {}
    merged = {name: getattr(kind.traits, name) for name in _FIELDS}
    merged.update(kind.variants.get(str(own.get("variant")), {}))
    merged.update({key: value for key, value in own.items() if key in _FIELDS})
    if kind.samplers and merged["sampler"] not in (*kind.samplers, AUTO):
        merged["sampler"] = kind.traits.sampler  # a page's word for another family's variant
    return Traits(**merged)
