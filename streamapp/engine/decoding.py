"""From latents to pixels with a diffusers VAE."""

from __future__ import annotations

from typing import Any

import torch


def decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents ``(B, C, h, w)`` as pictures ``(B, 3, H, W)``, float32, −1 to 1."""
    config = vae.config
    scaled = latents / config.scaling_factor
    mean, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and spread is not None:
        by_channel = (torch.tensor(values, device=scaled.device).view(1, -1, 1, 1) for values in (spread, mean))
        scaled = scaled * next(by_channel) + next(by_channel)
    images: torch.Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
    return images
