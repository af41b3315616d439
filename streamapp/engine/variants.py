"""What a checkpoint's tensors cannot tell: how it was trained or distilled. The caller names it when loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamapp.engine.errors import EngineError

_TRAILING = {"timestep_spacing": "trailing"}
#: Variant → what it changes in the scheduler's configuration; turbo, lightning and hyper as their publishers say.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "sd2": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "zero_snr": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, **_TRAILING},
    "lcm": {"_class_name": "LCMScheduler"},
    "turbo": {"_class_name": "EulerAncestralDiscreteScheduler", **_TRAILING},
    "lightning": {"_class_name": "EulerDiscreteScheduler", **_TRAILING},
    "hyper": {"_class_name": "EulerDiscreteScheduler", **_TRAILING},
}


def variant_of(traits: Mapping[str, Any]) -> str | None:
    """The variant that a model's row names; what its tensors tell anyway, and words of other families, are none."""
    if traits.get("zero_snr"):
        return "zero_snr"
    if traits.get("prediction") == "v_prediction":
        return "v_prediction"
    named = traits.get("variant")
    return named if named in VARIANTS else None


def scheduler_of(own: Mapping[str, Any], variant: str | None) -> dict[str, Any]:
    """A checkpoint's scheduler configuration with what its variant changes.

    Raises:
        EngineError: ``load_failed`` for a variant nobody knows.
    """
    if variant is None:
        return dict(own)
    if variant not in VARIANTS:
        message = f"variant {variant!r} is not known; known: {', '.join(VARIANTS)}"
        raise EngineError("load_failed", message, variant=variant)
    return {**own, **VARIANTS[variant]}
