"""Sampler names as people know them, and which diffusers scheduler each one means. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from streamapp.engine.errors import EngineError


@dataclass(frozen=True)
class Sampler:
    """A scheduler class of diffusers and what is changed in the checkpoint's own scheduler configuration."""

    name: str
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)


_DPM = "DPMSolverMultistepScheduler"
_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

#: Names follow the A1111 web UI, whose words users paste; the mapping is diffusers' own table.
SAMPLERS: Mapping[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("Euler", "EulerDiscreteScheduler"),
        Sampler("Euler Karras", "EulerDiscreteScheduler", _KARRAS),
        Sampler("Euler a", "EulerAncestralDiscreteScheduler"),
        Sampler("DPM++ 2M", _DPM, {"algorithm_type": "dpmsolver++"}),
        Sampler("DPM++ 2M Karras", _DPM, {"algorithm_type": "dpmsolver++", **_KARRAS}),
        Sampler("DPM++ 2M SDE", _DPM, _SDE),
        Sampler("DPM++ 2M SDE Karras", _DPM, {**_SDE, **_KARRAS}),
        Sampler("DPM++ SDE", "DPMSolverSDEScheduler"),
        Sampler("DPM++ SDE Karras", "DPMSolverSDEScheduler", _KARRAS),
        Sampler("UniPC", "UniPCMultistepScheduler"),
        Sampler("DDIM", "DDIMScheduler"),
        Sampler("Heun", "HeunDiscreteScheduler"),
        Sampler("LMS", "LMSDiscreteScheduler"),
        Sampler("LMS Karras", "LMSDiscreteScheduler", _KARRAS),
        Sampler("LCM", "LCMScheduler"),
    )
}

AUTO = "Auto"
ALIASES: Mapping[str, str] = {
    "dpm++": "DPM++ 2M",
    "automatic": AUTO,
    "euler ancestral": "Euler a",
    "flow-match euler": "Euler",
}
#: What draws checkpoints that were trained by flow matching.
FLOW_SAMPLERS = ("Euler", "UniPC", "DPM++ 2M")


def sampler_name(name: str) -> str:
    """The name as we write it, whatever its capitals; ``Auto`` is the checkpoint's own scheduler.

    Raises:
        EngineError: ``unknown_sampler``, with the nearest and all known names.
    """
    wanted = " ".join(name.split()).lower()
    known = {AUTO.lower(): AUTO, **{key.lower(): key for key in SAMPLERS}, **ALIASES}
    if wanted in known:
        return known[wanted]
    near = get_close_matches(wanted, known, n=1)
    hint = f"; did you mean {known[near[0]]}?" if near else f"; known: {', '.join(SAMPLERS)}"
    raise EngineError("unknown_sampler", f"sampler {name!r} is not known{hint}", field="sampler", known=list(SAMPLERS))
