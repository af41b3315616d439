"""Stage "latents": every scene as the denoiser sees it, each channel with mean 0 and spread 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from streamapp.training.pocket import data, networks
from streamapp.training.pocket.scenes import shown
from streamapp.training.pocket.work import Work

BATCH = 32


@torch.inference_mode()
def encode(work: Work) -> None:
    """Write ``latents.pt`` ``(scenes, 4, 16, 16)`` and the finished autoencoder, unless they are there."""
    if work.path("latents.pt").exists():
        return
    model = networks.vae().eval()
    model.load_state_dict(torch.load(work.path("vae.pt"), weights_only=True)["means"]["model"])
    known = data.load(work)
    found = []
    for start in tqdm(range(0, len(known.scenes), BATCH), "latents"):
        pictures = [shown(scene, known.pictures) for scene in known.scenes[start : start + BATCH]]
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1
        found.append(model.encode(batch).latent_dist.mean)
    raw = torch.cat(found)
    mean, spread = raw.mean(dim=(0, 2, 3)), raw.std(dim=(0, 2, 3))
    fold(model, mean, spread)
    work.write("vae-folded.pt", lambda part: torch.save(model.state_dict(), part))
    latents = (raw - mean[:, None, None]) / spread[:, None, None]
    work.write("latents.pt", lambda part: torch.save(latents, part))


@torch.no_grad()
def fold(model: Any, mean: torch.Tensor, spread: torch.Tensor) -> None:
    """Have the autoencoder itself subtract the mean and divide by the spread of its channels, both ``(4,)``."""
    channels = len(mean)
    into, out = model.quant_conv, model.post_quant_conv
    into.weight[:channels] /= spread.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / spread
    into.bias[channels:] -= 2 * spread.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= spread.view(1, -1, 1, 1)


def folded_vae(work: Work) -> Any:
    """The autoencoder that the latents are of."""
    model = networks.vae().eval()
    model.load_state_dict(torch.load(work.path("vae-folded.pt"), weights_only=True))
    return model
