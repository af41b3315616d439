"""Cost of a task in GPU-seconds: an estimate at submit, corrected by what workers measure.

The unit underneath is the megapixel-step: one denoiser forward over one million drawn pixels. Guidance
above 1 evaluates the denoiser twice per step (classifier-free guidance, Ho & Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from streamapp.generation import GenerationParams
from streamapp.models.families import FAMILIES

#: Seconds per megapixel-step before anything was measured; only their ratios matter for scheduling.
RATES: Mapping[str, float] = {"sd15": 0.45, "sdxl": 0.6, "sd3": 0.8, "flux": 2.0, "qwen_image": 3.0}
#: Encoding, decoding, post-processing and storing one image, in seconds.
OVERHEAD = 0.05


def work(params: GenerationParams) -> float:
    """Megapixel-steps of the whole task, classifier-free guidance counted twice."""
    kind = FAMILIES.get(params.family)
    scale = params.guidance if kind is None or kind.guided else params.true_cfg
    forwards = 2 if scale > 1 else 1
    return params.drawn.width * params.drawn.height / 1e6 * params.denoised * params.n * forwards


def estimate(params: GenerationParams, rates: Mapping[str, float] | None = None) -> float:
    """GPU-seconds the task will take alone; ``rates`` are learned seconds per megapixel-step by model name."""
    rate = (rates or {}).get(params.model) or RATES.get(params.family, 1.0)
    return round(work(params) * rate + OVERHEAD * params.n, 4)


K = TypeVar("K")


class Rates:
    """Seconds per megapixel-step and per switch by model, learned as exponentially weighted means."""

    def __init__(self, weight: float = 0.2) -> None:
        self.weight = weight
        self.by_model: dict[str, float] = {}
        self._loads: dict[tuple[str, str], float] = {}
        self._families: dict[str, str] = {}

    def drawn(self, params: GenerationParams, seconds: float) -> None:
        """A task of this kind occupied the engine for ``seconds``."""
        if seconds > 0 and (amount := work(params)) > 0:
            self._learn(self.by_model, params.model, seconds / amount)
            self._families[params.model] = params.family

    def factor(self, model: str) -> float:
        """What to multiply first estimates of this model's tasks by; 1 before anything was measured."""
        rate = self.by_model.get(model)
        return 1.0 if rate is None else rate / RATES.get(self._families[model], 1.0)

    def loaded(self, model: str, seconds: float, tier: str = "disk") -> None:
        """Making a checkpoint ready took ``seconds``, from the tier in which it was."""
        if seconds >= 0:
            self._learn(self._loads, (model, tier), seconds)

    def switch(self, model: str, default: float = 2.0, tier: str = "disk") -> float:
        """Seconds that switching to ``model`` takes from a tier, as measured; before the first time ``default``.

        From ``vram`` it takes none. What was measured from the other of the two tiers stands in for one that was not.
        """
        if tier == "vram":
            return 0.0
        other = "ram" if tier == "disk" else "disk"
        return self._loads.get((model, tier), self._loads.get((model, other), default))

    def _learn(self, table: dict[K, float], key: K, value: float) -> None:
        known = table.get(key)
        table[key] = value if known is None else known + self.weight * (value - known)
