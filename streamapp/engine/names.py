"""Sampler names as people know them, and which diffusers scheduler each one means. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from streamapp.engine.errors import EngineError


@dataclass(frozen=True)
class Sampler:
    """A scheduler class of diffusers and what is changed in the checkpoint's own scheduler configuration.

    An empty ``scheduler`` is the checkpoint's own class.
    """

    name: str
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)


_DPM = "DPMSolverMultistepScheduler"
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS = {**_SIGMAS, "use_karras_sigmas": True}
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
#: How the steps are spread over the noise: schedule types as A1111 calls them. Behind a sampler's name they make
#: another sampler: ``DPM++ 2M Exponential``.
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "Karras": _KARRAS,
    "Exponential": {**_SIGMAS, "use_exponential_sigmas": True},
    "Beta": {**_SIGMAS, "use_beta_sigmas": True},
    "SGM Uniform": {**_SIGMAS, "timestep_spacing": "trailing"},
}
SCHEDULE_ALIASES: Mapping[str, str] = {"trailing": "SGM Uniform", "simple": "SGM Uniform"}
#: Samplers that walk timesteps, not sigmas: only their spacing can be chosen; LCM has one schedule only.
_BY_TIMESTEP, _FIXED = ("Euler a", "DDIM"), ("LCM",)
ALIASES: Mapping[str, str] = {
    "dpm++": "DPM++ 2M",
    "automatic": AUTO,
    "euler ancestral": "Euler a",
    "flow-match euler": "Euler",
}
#: What draws checkpoints that were trained by flow matching.
FLOW_SAMPLERS = ("Euler", "UniPC", "DPM++ 2M")


def sampler_name(name: str, schedule: str | None = None) -> str:
    """The name as we write it, whatever its capitals, its schedule behind it; ``Auto`` is the checkpoint's own.

    Args:
        name: a sampler's, which may end in a schedule's.
        schedule: one of :data:`SCHEDULES`; None (or ``Automatic``): as the name says, else the sampler's own.

    Raises:
        EngineError: ``unknown_sampler``, with the nearest and all known names; ``unknown_schedule``, also for one that
            the sampler cannot take.
    """
    wanted = " ".join(name.split())
    base, ending = _known(wanted), None
    if base is None:
        base, ending = _parted(wanted)
    if schedule is None or schedule.strip().lower() in {"", "automatic"}:
        return base if ending is None else _joined(base, ending)
    chosen = schedule_name(schedule)
    if ending not in (None, chosen):
        message = f"sampler {name!r} names the schedule {ending} and {chosen} is asked for; name one of them"
        raise EngineError("unknown_schedule", message, field="schedule")
    return base if base.endswith(f" {chosen}") else _joined(base, chosen)


def schedule_name(name: str) -> str:
    """A schedule's name as we write it.

    Raises:
        EngineError: ``unknown_schedule``, with all known names.
    """
    wanted = " ".join(name.split()).lower()
    found = SCHEDULE_ALIASES.get(wanted) or next((each for each in SCHEDULES if each.lower() == wanted), None)
    if found is None:
        message = f"schedule {name!r} is not known; known: {', '.join(SCHEDULES)}"
        raise EngineError("unknown_schedule", message, field="schedule", known=list(SCHEDULES))
    return found


def sampler_of(name: str) -> Sampler:
    """What a name that :func:`sampler_name` gave stands for."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    for schedule, options in SCHEDULES.items():
        if name.endswith(f" {schedule}"):
            base = sampler_of(name.removesuffix(f" {schedule}"))
            return Sampler(name, base.scheduler, {**base.options, **options})
    return Sampler(AUTO, "")


def _known(name: str) -> str | None:
    wanted = name.lower()
    known = {AUTO.lower(): AUTO, **{key.lower(): key for key in SAMPLERS}, **ALIASES}
    return known.get(wanted)


def _parted(name: str) -> tuple[str, str]:
    """A sampler's name and the schedule behind it."""
    for schedule in SCHEDULES:
        if name.lower().endswith(f" {schedule.lower()}"):
            base = _known(name[: -len(schedule)].strip())
            if base is not None:
                return base, schedule
    wanted = {key.lower(): key for key in (AUTO, *SAMPLERS, *ALIASES)}
    near = get_close_matches(name.lower(), wanted, n=1)
    hint = f"; did you mean {wanted[near[0]]}?" if near else f"; known: {', '.join(SAMPLERS)}"
    raise EngineError("unknown_sampler", f"sampler {name!r} is not known{hint}", field="sampler", known=list(SAMPLERS))


def _joined(base: str, schedule: str) -> str:
    """The sampler with a schedule, where it can take it."""
    if own := next((each for each in SCHEDULES if base.endswith(f" {each}")), None):
        message = f"{base} has the schedule {own} and {schedule} is asked for; name one of them"
        raise EngineError("unknown_schedule", message, field="schedule")
    if base in _FIXED or (base in _BY_TIMESTEP and any(SCHEDULES[schedule].get(flag) for flag in _SIGMAS)):
        message = f"{base} cannot take the schedule {schedule}; leave it out, or use Euler or a DPM++ sampler"
        raise EngineError("unknown_schedule", message, field="schedule")
    return f"{base} {schedule}"
