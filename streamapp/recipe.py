"""The recipe of one picture: a body that can be submitted again for the same picture, and where it came from.

It is our JSON, exact; :mod:`streamapp.infotext` makes of it what other tools read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from streamapp.errors import Conflict
from streamapp.generation import MAX_SEED, ControlRef, GenerationParams

SCHEMA = "streamapp.recipe/1"
#: What of the environment decides a picture's exact pixels.
PACKAGES = ("streamapp", "torch", "diffusers", "transformers")


@dataclass(frozen=True, slots=True)
class Origin:
    """Facts about a picture that its task's parameters do not hold.

    ``digests`` are the SHA-256 (hex) of LoRAs, learned words and ControlNets by name, ``hashes`` AutoV3 where known;
    ``drawn_ms`` is in milliseconds of the database's clock; ``notes`` are the engine's, beside those of the submit.
    """

    task_id: str
    index: int
    model_digest: str
    drawn_ms: int
    digests: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    precision: str = "float32"
    notes: tuple[str, ...] = ()


def image_recipe(params: GenerationParams, origin: Origin) -> dict[str, Any]:
    """The recipe of picture ``origin.index``: :func:`recipe_body` plus ``provenance``, JSON-serialisable."""
    loras = [
        {"name": lora.name, "weight": lora.weight, "digest": origin.digests.get(lora.name, "")}
        | ({"autov3": origin.hashes[lora.name]} if lora.name in origin.hashes else {})
        for lora in params.loras
    ]
    words = [{"name": each.name, "digest": origin.digests.get(each.name, "")} for each in params.embeddings]
    provenance = {
        "schema": SCHEMA,
        "task_id": origin.task_id,
        "index": origin.index,
        "created_at": datetime.fromtimestamp(origin.drawn_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "family": params.family,
        "model": {"name": params.model, "digest": origin.model_digest},
        "loras": loras,
        **({"embeddings": words} if words else {}),
        **({"controls": _steered(params, origin)} if params.controls else {}),
        "prompt": params.prompt,
        "drawn_at": str(params.drawn),
        "delivered_at": str(params.delivered),
        "notes": [*params.notes, *origin.notes],
        # What was asked for, and why it was not drawn.
        **({} if params.instead_of is None else {"instead_of": params.instead_of.model_dump()}),
        "device": origin.device,
        "precision": origin.precision,
        "versions": dict(versions()),
    }
    return {**recipe_body(params, origin.index), "provenance": provenance}


def recipe_body(params: GenerationParams, index: int) -> dict[str, Any]:
    """Picture ``index`` alone as the body of a submit request: one image, its own seed, nothing left to a default."""
    fields: dict[str, Any] = {
        "model": params.model,
        "resolution": str(params.delivered),
        "style": params.style,
        "steps": params.steps,
        "cfg_scale": params.guidance,
        "true_cfg_scale": params.true_cfg if params.true_cfg > 1 else None,
        "sampler": params.sampler,
        "clip_skip": params.clip_skip,
        "seed": image_seed(params, index),
        "negative_text": params.negative_prompt,
        **_start(params),
        "controls": [control_body(control) for control in params.controls] or None,
        "batch_size": 1,
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in params.loras] or None,
    }
    return {"text": params.text, "params": {name: value for name, value in fields.items() if value is not None}}


def control_body(control: ControlRef) -> dict[str, Any]:
    """A ControlNet as a request names it, its picture by digest."""
    fields = {
        "model": control.name,
        "image": control.image.name,
        "scale": control.scale,
        "start": control.start,
        "end": control.end,
        "preprocessor": control.preprocessor,
    }
    return fields | ({} if control.mode is None else {"mode": control.mode})


def _steered(params: GenerationParams, origin: Origin) -> list[dict[str, Any]]:
    """The ControlNets with their files' digests."""
    bodies = [(control.name, control_body(control)) for control in params.controls]
    return [
        {"name": name, "digest": origin.digests.get(name, ""), **{key: body[key] for key in body if key != "model"}}
        for name, body in bodies
    ]


def _start(params: GenerationParams) -> dict[str, Any]:
    """The picture that is started from, by digest."""
    start = params.start
    if start is None:
        return {}
    fields = {"init_image": start.image.name, "strength": start.strength, "resize_mode": start.resize}
    return fields | ({} if start.mask is None else {"mask": start.mask.name, "mask_feather": start.feather})


def image_seed(params: GenerationParams, index: int) -> int:
    """The seed of picture ``index``: the task's, counted on, around the end of what a seed may be."""
    return (params.seed + index) % (MAX_SEED + 1)


def check_provenance(
    provenance: Mapping[str, Any], *, model_digest: str, lora_digests: Mapping[str, str], prompt: str, drawn: str
) -> None:
    """Refuse a re-submitted recipe that would not give the same picture here; what it leaves out is not checked.

    ``drawn`` is the size that would be drawn, as ``128x128``; ``prompt`` the one with the words of the style.

    Raises:
        Conflict: names the model or LoRA that is another one now, or what else has changed since.
    """
    remedy = "register that one under this name, or leave provenance out to draw with what is here"
    model = _mapping(provenance.get("model"))
    named = [("model", model.get("name"), model.get("digest"), model_digest)]
    for kind, key in (("LoRA", "loras"), ("learned word", "embeddings"), ("ControlNet", "controls")):
        given = provenance.get(key)
        entries = map(_mapping, given if isinstance(given, list | tuple) else ())
        facts = ((entry.get("name"), entry.get("digest")) for entry in entries)
        named += [(kind, name, digest, lora_digests.get(str(name), "")) for name, digest in facts]
    for kind, name, wanted, found in named:
        if wanted and wanted != found:
            have = f"the one here has {found[:10]}" if found else "there is no such one here"
            raise Conflict(
                f"the recipe was drawn with {kind} {name} of digest {str(wanted)[:10]}, {have}: {remedy}",
                field="provenance",
                name=name,
                expected=wanted,
                found=found,
            )
    for what, wanted, found in (
        ("prompt with the words of its style", provenance.get("prompt"), prompt),
        ("size at which the model draws it", provenance.get("drawn_at"), drawn),
    ):
        if wanted and wanted != found:
            raise Conflict(
                f"the {what} has changed since the recipe was written: leave provenance out to draw it as it is now",
                field="provenance",
                expected=wanted,
                found=found,
            )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@cache
def versions() -> Mapping[str, str]:
    """The installed versions of what decides the pixels; imports none of it."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
