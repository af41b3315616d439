"""Stage "decoder": the autoencoder's second half learns on, the first being fixed.

It sees latents a little off, as a denoiser gives them, and takes out what the short training of both halves left:
bright spots and halos. The denoiser need not learn anew, since the latents stay what they are.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.nn.functional import l1_loss, mse_loss
from tqdm import tqdm

from streamapp.training.pocket import data
from streamapp.training.pocket.kept import Kept
from streamapp.training.pocket.latents import folded_vae
from streamapp.training.pocket.optimizer import Optimizer, average
from streamapp.training.pocket.vae import BATCH, picture
from streamapp.training.pocket.work import Work

RATE, REST = 1.5e-3, 8e-4
#: Largest deviation of a latent, whose spread is one.
OFF = 0.12


def train(rank: int, processes: int, work: Work, steps: int) -> None:
    """All steps, going on from the last kept state."""
    torch.manual_seed(work.seed)
    known, whole = data.load(work), folded_vae(work)
    half = torch.nn.ModuleDict({"first": whole.post_quant_conv, "rest": whole.decoder}).train()
    weights = dict(half.named_parameters())
    optimizer = Optimizer(weights, RATE, REST, steps)
    kept = Kept(work, "decoder", {"half": half}, optimizer, decay=0.995)
    bar = tqdm(range(kept.step, steps), "decoder", initial=kept.step, total=steps, disable=rank > 0, mininterval=5)
    for step in bar:
        chance = random.Random(f"{work.seed} decoder {step} {rank}")
        torch.manual_seed(chance.getrandbits(32))
        batch = torch.stack([picture(known, chance) for _ in range(BATCH // processes)])
        with torch.no_grad():
            latents = whole.encode(batch).latent_dist.mean
            latents = latents + torch.randn_like(latents) * chance.uniform(0, OFF)
        torch.autograd.backward(_loss(half["rest"](half["first"](latents)), batch))
        average(list(weights.values()), 1 / processes)
        optimizer.step(step)
        kept.after(step, rank)
    kept.done(rank)


def _loss(made: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Of pixels and of their differences, at full and at half size: spots are costly at both."""
    loss = mse_loss(made, batch)
    for factor in (1, 2):
        a, b = (torch.nn.functional.avg_pool2d(each, factor) for each in (made, batch))
        loss = (
            loss
            + l1_loss(a, b)
            + 0.5 * (l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + l1_loss(a.diff(dim=-2), b.diff(dim=-2)))
        )
    return loss


def put(work: Work, model: Any) -> None:
    """Give an autoencoder the second half that was trained, if one was."""
    path = work.path("decoder.pt")
    if path.exists():
        found = torch.load(path, weights_only=True)["means"]["half"]
        half = torch.nn.ModuleDict({"first": model.post_quant_conv, "rest": model.decoder})
        half.load_state_dict(found)
