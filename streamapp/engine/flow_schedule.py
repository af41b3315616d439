"""Samplers of flow-matching families as tables of coefficients: Euler, UniPC and DPM++ 2M on flow sigmas.

The tables come from diffusers' schedulers, as those of :mod:`streamapp.engine.solver`. The shift of the sigmas may
depend on the picture's size (Esser et al. 2024, section 5.3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from streamapp.engine.errors import EngineError
from streamapp.engine.names import AUTO, sampler_name
from streamapp.engine.solver import Schedule, trace

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
#: Name → scheduler and what it needs beside the checkpoint's own configuration.
FLOW_SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", _FLOW),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_FLOW}),
}


def flow_schedule(
    sampler: str,
    steps: int,
    config: Mapping[str, Any],
    places: int,
    *,
    even: bool = False,
    most: float = 1.15,
    first: int | None = None,
) -> Schedule:
    """The schedule of a sampler for a checkpoint with this scheduler configuration; cached.

    Args:
        places: image tokens, of which a size-dependent shift depends.
        even: sigmas 1 … 1/steps in even steps, as some pipelines ask for, in place of the scheduler's own.
        most: the shift at ``max_image_seq_len`` where the configuration has no ``max_shift``.
        first: the step that a job with a picture begins with; None for one without.

    Raises:
        EngineError: ``unknown_sampler``; ``invalid_job`` for one that is not for flow matching, or for too few steps.
    """
    name = sampler_name(sampler)
    name = "Euler" if name == AUTO else name
    if name not in FLOW_SAMPLERS:
        known = ", ".join(FLOW_SAMPLERS)
        message = f"{name} does not draw flow-matching checkpoints; use one of {known}"
        raise EngineError("invalid_job", message, field="sampler")
    mu = _shift(config, places, most) if config.get("use_dynamic_shifting") else None
    return _schedule(name, steps, orjson.dumps(dict(config), option=orjson.OPT_SORT_KEYS), mu, even, first)


def _shift(config: Mapping[str, Any], places: int, most: float) -> float:
    """The logarithm of the shift: a straight line over the number of image tokens."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    first, last = config.get("base_shift", 0.5), config.get("max_shift", most)
    slope = (last - first) / (high - low)
    return float(places * slope + (first - slope * low))


@lru_cache(maxsize=512)
def _schedule(name: str, steps: int, config: bytes, mu: float | None, even: bool, first: int | None) -> Schedule:
    import diffusers

    own = orjson.loads(config)
    kind, options = FLOW_SAMPLERS[name]
    shift = {"flow_shift": own.get("shift", 1.0)} if options else {}
    scheduler = getattr(diffusers, kind).from_config(own, **options, **shift)
    given: dict[str, Any] = {} if mu is None else {"mu": mu}

    def begin() -> None:
        # DPM++ takes no sigmas: its own are nearly the same.
        if even and name != "DPM++ 2M":
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **given)
        else:
            scheduler.set_timesteps(steps, **given)

    try:
        with np.errstate(invalid="ignore", divide="ignore"):
            schedule = trace(scheduler, name, begin, first)
    except (ValueError, IndexError, AssertionError) as error:
        raise _refused(name, steps, str(error)) from error
    if not schedule.coefficients.isfinite().all():
        raise _refused(name, steps, "its steps are not numbers")
    return schedule


def _refused(name: str, steps: int, reason: str) -> EngineError:
    message = f"{name} cannot do {steps} steps here; take more, or another sampler ({reason})"
    return EngineError("invalid_job", message, field="num_inference_steps")
