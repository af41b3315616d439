"""Finished samples as what their jobs asked for: a latent, raw RGB or a PIL image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from streamapp.engine.decoding import IN_TILES, WHOLE
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Picture
from streamapp.engine.sample import Sample

#: A sample's latent as a picture ``(3, H, W)``, float32, −1 to 1; or so in tiles.
Decode = Callable[[Sample, bool], torch.Tensor]


def results(decode: Decode, samples: Sequence[Sample], precision: str, tiled: bool = False) -> list[Any]:
    """Per sample what its job's ``output`` names; a sample that is not finite gives an error (``not_finite``).

    Args:
        tiled: decode in tiles, also what is small enough to be decoded whole.
    """
    found: list[Any] = []
    for sample in samples:
        if not torch.isfinite(sample.latents).all():
            message = "the picture came out as not-a-number; try another seed, less guidance or more steps"
            found.append(EngineError("not_finite", message))
        elif sample.job.output == "latent":
            found.append(sample.latents.clone())
        else:
            picture = _picture(decode, sample, precision, tiled or sample.job.width * sample.job.height > WHOLE)
            found.append(picture.to_pil() if sample.job.output == "pil" else picture)
    return found


def _picture(decode: Decode, sample: Sample, precision: str, tiled: bool) -> Picture:
    image = decode(sample, tiled)
    pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    height, width = pixels.shape[:2]
    info = {
        "seed": sample.seed,
        "sampler": sample.schedule.sampler,
        "steps": sample.job.num_inference_steps,
        "precision": precision,
        "notes": (*sample.notes, IN_TILES) if tiled else sample.notes,
    }
    return Picture(width, height, pixels.tobytes(), info)
