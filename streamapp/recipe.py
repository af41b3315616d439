"""The recipe of one picture: a body that can be submitted again for the same picture, and where it came from.

Two forms: our JSON, exact, and the infotext that other tools read (see :func:`infotext`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import orjson

from streamapp.errors import Conflict
from streamapp.generation import MAX_SEED, GenerationParams

SCHEMA = "streamapp.recipe/1"
#: What of the environment decides a picture's exact pixels.
PACKAGES = ("streamapp", "torch", "diffusers", "transformers")


@dataclass(frozen=True, slots=True)
class Origin:
    """Facts about a picture that its task's parameters do not hold.

    ``digests`` are the SHA-256 (hex) of LoRAs and learned words by name, ``hashes`` their AutoV3 where known;
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
        "batch_size": 1,
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in params.loras] or None,
    }
    return {"text": params.text, "params": {name: value for name, value in fields.items() if value is not None}}


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
    for kind, key in (("LoRA", "loras"), ("learned word", "embeddings")):
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


class Infotext(NamedTuple):
    """The three blocks of an infotext; settings in their order."""

    prompt: str
    negative: str
    settings: dict[str, str]


def infotext(recipe: Mapping[str, Any]) -> str:
    """The recipe in the form that the A1111 web UI writes: prompt, negative prompt, one line of settings.

    The prompt holds the words of the style and a ``<lora:NAME:WEIGHT>`` for each LoRA. Lossy for odd prompts (see
    :func:`clean`); the JSON is exact.
    """
    params, origin = recipe["params"], recipe["provenance"]
    digest = origin["model"]["digest"]
    settings = {
        "Steps": str(params["steps"]),
        "Sampler": params["sampler"],
        "CFG scale": f"{params['cfg_scale']:g}",
        "Seed": str(params["seed"]),
        "Size": origin["drawn_at"],
        # Other tools take an absent one for 1.
        "Denoising strength": f"{params['strength']:g}" if "strength" in params else "",
        "Mask blur": str(params.get("mask_feather", "")),
        "Clip skip": "" if params.get("clip_skip", 1) == 1 else str(params["clip_skip"]),
        "Model hash": digest[:10],
        "Model": params["model"],
    }
    hashes = {"model": digest[:10]} if digest else {}
    prompt = origin["prompt"]
    short = {}
    for lora in origin["loras"]:
        if TAG_NAME.fullmatch(lora["name"]):
            prompt += f" <lora:{lora['name']}:{lora['weight']:g}>"
        short[lora["name"]] = lora.get("autov3") or lora["digest"][:12]
        hashes[f"lora:{lora['name']}"] = lora["digest"][:10]
    if short:
        settings["Lora hashes"] = ", ".join(f"{name}: {value}" for name, value in short.items())
    if words := origin.get("embeddings"):
        settings["TI hashes"] = ", ".join(f"{word['name']}: {word['digest'][:12]}" for word in words)
        hashes |= {f"embed:{word['name']}": word["digest"][:10] for word in words}
    if origin["delivered_at"] != origin["drawn_at"]:
        settings |= {"Postprocess upscale to": origin["delivered_at"], "Postprocess upscaler": "Lanczos"}
    settings |= {"RNG": "CPU", "Version": f"streamapp {origin['versions']['streamapp']}"}
    if hashes:
        settings["Hashes"] = orjson.dumps(hashes).decode()
    settings = {name: value for name, value in settings.items() if value}
    return write_infotext(Infotext(prompt, params.get("negative_text") or "", settings))


#: Names that the web UI's prompt syntax can hold.
TAG_NAME = re.compile(r"[A-Za-z0-9_.-]+")
#: Settings whose value is raw JSON; readers expect them at the end.
RAW = frozenset({"Hashes"})
NEGATIVE = "Negative prompt:"
PAIR = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')


def write_infotext(info: Infotext) -> str:
    """The three blocks as text; prompts are cleaned, values that could be misread are quoted as JSON."""
    pairs = [f"{name}: {value if name in RAW else _quoted(value)}" for name, value in info.settings.items()]
    negative = clean(info.negative)
    blocks = [clean(info.prompt), f"{NEGATIVE} {negative}" if negative else "", ", ".join(pairs)]
    return "\n".join(block for number, block in enumerate(blocks) if block or number == 0)


def parse_infotext(text: str) -> Infotext:
    """What :func:`write_infotext` wrote, or another tool; without a line of settings, all of it is prompt."""
    lines = text.split("\n")
    settings = _parse_settings(lines[-1])
    # So few pairs are more likely the end of a prompt.
    lines, settings = (lines[:-1], settings) if len(settings) >= 3 else (lines, {})
    prompt, _, negative = "\n".join(lines).partition(NEGATIVE)
    return Infotext(prompt.strip(), negative.strip(), settings)


def clean(text: str) -> str:
    """A prompt as it can stand in an infotext: no control characters, nothing that reads as a block of its own."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()
    text = "".join(char for char in text if char in "\n\t" or (char >= " " and char != "\x7f"))
    text = text.replace(NEGATIVE, "Negative prompt :")
    return re.sub(r"(?m)^(\s*Steps):", r"\1 :", text).strip()


def _quoted(value: str) -> str:
    """A value as it stands, or as a JSON string where comma, colon, quote, line end or edge blanks would be lost."""
    plain = value == value.strip() and not any(char in ',:"\n' for char in value)
    return value if plain and value else orjson.dumps(value).decode()


def _parse_settings(line: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    raw = re.search(r"(?:^|,)\s*Hashes: (\{.*\})\s*$", line)
    if raw is not None:
        line = line[: raw.start()]
    for match in PAIR.finditer(line):
        name, value = match[1], match[2].strip()
        if value.startswith('"'):
            with suppress(orjson.JSONDecodeError):
                value = str(orjson.loads(value))
        settings[name] = value
    if raw is not None:
        settings["Hashes"] = raw[1]
    return settings
