"""Stage "vae": the autoencoder, in float32 (bfloat16 does not help so narrow a network)."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
from torch.nn.functional import l1_loss, mse_loss
from tqdm import tqdm

from streamapp.training.pocket import data, networks
from streamapp.training.pocket.kept import Kept
from streamapp.training.pocket.optimizer import Optimizer, average
from streamapp.training.pocket.pictures import GROUNDS, HUES, Pixels, coloured, ground, laid, resized
from streamapp.training.pocket.scenes import SIDE, shown
from streamapp.training.pocket.work import Work

BATCH, RATE, REST = 6, 4e-3, 2e-3
#: Weight of the divergence from a unit normal at the end of its warm-up, which takes a quarter of the steps.
DIVERGENCE = 1e-4


def train(rank: int, processes: int, work: Work, steps: int) -> None:
    """All steps, going on from the last kept state."""
    torch.manual_seed(work.seed)
    known = data.load(work)
    model = networks.vae()
    with torch.no_grad():
        model.quant_conv.bias[networks.LATENT[0] :] = -6.0  # log-variance: begin nearly without noise
    weights = dict(model.named_parameters())
    optimizer = Optimizer(weights, RATE, REST, steps)
    kept = Kept(work, "vae", {"model": model}, optimizer, decay=0.995)
    began, first = time.monotonic(), kept.step
    bar = tqdm(range(first, steps), "vae", initial=first, total=steps, disable=rank > 0, mininterval=5)
    for step in bar:
        chance = random.Random(f"{work.seed} vae {step} {rank}")
        torch.manual_seed(chance.getrandbits(32))
        batch = torch.stack([picture(known, chance) for _ in range(BATCH // processes)])
        loss, told = _loss(model, batch, min(1.0, 4 * step / steps))
        torch.autograd.backward(loss)
        average(list(weights.values()), 1 / processes)
        optimizer.step(step)
        kept.after(step, rank)
        if step % 50 == 0:
            bar.set_postfix(told)
    kept.done(rank)
    if rank == 0 and first < steps:  # a later run finds nothing to do and keeps what is noted
        work.note(vae={"steps": steps, "minutes": round((time.monotonic() - began) / 60, 1), "from": first})


def picture(known: data.Data, chance: random.Random) -> torch.Tensor:
    """``(3, 128, 128)`` in [−1, 1]: a scene, or an icon that only the VAE sees, in many colours and places."""
    if chance.random() < 0.6:
        canvas = shown(chance.choice(known.scenes), known.pictures)
    else:
        icon: Pixels = chance.choice(known.others)
        if chance.random() < 0.4:
            icon = coloured(icon, chance.choice(list(HUES)))
        canvas = ground(chance.choice(list(GROUNDS)) if chance.random() < 0.4 else "white", SIDE)
        side = chance.randint(60, 124)
        laid(canvas, resized(icon, side), chance.randint(0, SIDE - side), chance.randint(0, SIDE - side))
    return torch.from_numpy(np.ascontiguousarray(canvas)).permute(2, 0, 1) * 2 - 1


def _loss(model: Any, batch: torch.Tensor, warmth: float) -> tuple[torch.Tensor, dict[str, str]]:
    posterior = model.encode(batch).latent_dist
    made = model.decode(posterior.sample()).sample
    across = l1_loss(made.diff(dim=-1), batch.diff(dim=-1)) + l1_loss(made.diff(dim=-2), batch.diff(dim=-2))
    square = mse_loss(made, batch)
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    loss = l1_loss(made, batch) + 0.5 * across + square + warmth * DIVERGENCE * divergence
    decibels = -10 * torch.log10(square.detach() / 4)
    return loss, {"dB": f"{decibels:.1f}", "kl": f"{divergence.detach():.2f}"}
