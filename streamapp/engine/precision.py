"""In which types a checkpoint's weights are loaded. No torch here.

Half precision on a CUDA device: Stable Diffusion 1, 2 and XL in float16; Stable Diffusion 3, Flux and Qwen-Image in
bfloat16, as their blocks and T5 leave float16's range. A U-Net family's VAE stays in float32 where its
configuration asks for it (``force_upcast``, the default). A CPU computes in float32.
"""

from __future__ import annotations

from dataclasses import replace

from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device

AUTO = "auto"
#: On a CUDA device; what is not named here is computed in float32.
HALVES = {
    "sd15": "float16",
    "sdxl": "float16",
    "controlnet": "float16",
    "sd3": "bfloat16",
    "flux": "bfloat16",
    "qwen_image": "bfloat16",
}
#: Families whose VAE has the denoiser's type: their pipelines run so.
WHOLE = frozenset({"sd3", "flux", "qwen_image"})
#: Share of the memory in use above which the next load takes less precision.
PRESSED = 0.9


def precise(device: Device, family: str | None, used: float | None, strict: bool) -> tuple[Device, tuple[str, ...]]:
    """The device with the types for a family's weights, and what is to be said of them.

    Args:
        device: as the engine was told; types that it names are taken as they are.
        family: None for the first one.
        used: share of the memory that is in use; None where nobody counts.
        strict: refuse to load rather than to take less.

    Raises:
        EngineError: ``memory_pressure`` (retryable).
    """
    if device.dtype != AUTO:
        return device, ()
    name = family or "sd15"
    cuda = device.name.startswith("cuda")
    best = HALVES.get(name, "float32") if cuda else "float32"
    vae = best if cuda and name in WHOLE else "float32"
    chosen, notes = replace(device, dtype=best, vae=vae), ()
    if used is None or used <= PRESSED or name not in HALVES:
        return chosen, notes
    less = replace(chosen, dtype="bfloat16" if best == "float32" else best, vae="bfloat16")
    if less == chosen:
        return chosen, notes
    what = f"weights in {less.dtype}, VAE in {less.vae}, instead of {chosen.dtype} and {chosen.vae}"
    if strict:
        message = f"{used:.0%} of the memory is in use, which takes {what}, and strict_precision refuses that;"
        raise EngineError("memory_pressure", f"{message} unload something or unset it", retryable=True)
    return less, (f"memory was short: {what}",)
