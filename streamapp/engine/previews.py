"""Latents as small pictures: one linear map per checkpoint, from a latent's channels to a colour.

The map is fitted once by least squares on a few random latents that the checkpoint's own VAE decodes. It costs a
product of a few numbers per pixel where decoding costs a network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from streamapp.engine.events import Picture

#: Side of the random latents, and how many of them for each size of their patches.
SIDE, EACH = 8, 3
PATCHES = (1, 2, 4, 8)


class Colours:
    """The map of one VAE, fitted on first use.

    Args:
        decode: latents ``(B, C, h, w)`` → pictures ``(B, 3, H, W)``, −1 to 1.
        channels: of a latent.
    """

    def __init__(self, decode: Callable[[torch.Tensor], torch.Tensor], channels: int, device: str) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        # Patches of one value beside plain noise: pictures have areas, and areas show a VAE's colours.
        noise = [torch.randn(EACH, channels, SIDE // size, SIDE // size, generator=generator) for size in PATCHES]
        latents = torch.cat([functional.interpolate(each, size=(SIDE, SIDE)) for each in noise])
        colours = functional.adaptive_avg_pool2d(decode(latents.to(device)).float().cpu(), SIDE)
        self._map = torch.linalg.lstsq(_columns(latents), colours.movedim(1, -1).reshape(-1, 3)).solution

    def picture(self, latents: torch.Tensor) -> Picture:
        """A latent ``(C, h, w)`` as a picture of one pixel per place."""
        _, height, width = latents.shape
        colours = _columns(latents[None].float().cpu()) @ self._map
        pixels = ((colours / 2 + 0.5).clamp(0, 1) * 255).round().byte()
        return Picture(width, height, pixels.numpy().tobytes(), {})


def _columns(latents: torch.Tensor) -> torch.Tensor:
    """``(B·h·w, C + 1)``: the channels and a constant."""
    flat = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    return functional.pad(flat, (0, 1), value=1.0)
