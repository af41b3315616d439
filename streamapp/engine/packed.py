"""Latents as rows of tokens, patches of two by two places each: how Flux and Qwen-Image keep them."""

from __future__ import annotations

import torch


def pack(planes: torch.Tensor) -> torch.Tensor:
    """``(C, 2 h, 2 w)`` as ``(h w, 4 C)``."""
    channels, height, width = planes.shape
    patches = planes.reshape(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return patches.reshape(height // 2 * (width // 2), 4 * channels)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """``(height width, 4 C)`` as ``(C, 2 height, 2 width)``."""
    channels = tokens.shape[-1] // 4
    patches = tokens.reshape(height, width, channels, 2, 2).permute(2, 0, 3, 1, 4)
    return patches.reshape(channels, 2 * height, 2 * width)
