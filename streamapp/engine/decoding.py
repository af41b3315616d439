"""From latents to pixels with a diffusers VAE."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch

#: Pixels above which a picture is decoded in tiles: at 2048² one activation of a whole one is 4 GB in float32.
WHOLE = 2 * 1024 * 1024
#: Sides of tiles in pixels, where the VAE's own are not smaller.
TILE = 512
IN_TILES = "the picture was decoded in overlapping tiles, to save memory"


def for_decoding(vae: Any) -> Any:
    """The same weights in an object of its own, so that another thread may decode while this one encodes.

    Video VAEs keep their state of a pass in the object itself. Its tiles are small enough to save memory.
    """
    own = copy(vae)
    side = getattr(own, "tile_sample_min_size", None)
    if side is not None and side > TILE:
        own.tile_sample_min_size, own.tile_latent_min_size = TILE, own.tile_latent_min_size * TILE // side
    return own


def pictures(vae: Any, scaled: torch.Tensor, tiled: bool) -> torch.Tensor:
    """What a VAE makes of latents in its own scale."""
    decode = vae.tiled_decode if tiled else vae.decode
    images: torch.Tensor = decode(scaled.to(vae.dtype), return_dict=False)[0]
    return images


def decoded(vae: Any, latents: torch.Tensor, tiled: bool = False) -> torch.Tensor:
    """Latents ``(B, C, h, w)`` as pictures ``(B, 3, H, W)``, float32, −1 to 1."""
    config = vae.config
    scaled = latents / config.scaling_factor
    mean, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and spread is not None:
        by_channel = (torch.tensor(values, device=scaled.device).view(1, -1, 1, 1) for values in (spread, mean))
        scaled = scaled * next(by_channel) + next(by_channel)
    return pictures(vae, scaled, tiled).float()
