"""The recipe in the form that other tools read and write: the infotext of the A1111 web UI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import orjson


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
    for number, control in enumerate(origin.get("controls", ())):
        settings[f"ControlNet {number}"] = _unit(control)
    if origin["delivered_at"] != origin["drawn_at"]:
        settings |= {"Postprocess upscale to": origin["delivered_at"], "Postprocess upscaler": "Lanczos"}
    settings |= {"RNG": "CPU", "Version": f"streamapp {origin['versions']['streamapp']}"}
    if hashes:
        settings["Hashes"] = orjson.dumps(hashes).decode()
    settings = {name: value for name, value in settings.items() if value}
    return write_infotext(Infotext(prompt, params.get("negative_text") or "", settings))


def _unit(control: Mapping[str, Any]) -> str:
    """A ControlNet in the words of the web UI's extension."""
    return (
        f"Module: {control['preprocessor']}, Model: {control['name']} [{control['digest'][:8]}], "
        f"Weight: {control['scale']:g}, Guidance Start: {control['start']:g}, Guidance End: {control['end']:g}"
    )


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
