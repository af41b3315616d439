"""Stage "classifier": names what a picture shows, to score a model without anybody's eyes.

It learns from the same icons as the model, but from pictures of its own: any colour, ground, size and place, turned a
little, blurred and noisy. It is judged on such pictures that it never saw.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import nn
from tqdm import tqdm

from streamapp.training.pocket import data
from streamapp.training.pocket.pictures import GROUNDS, HUES, Pixels, coloured, ground, laid, resized
from streamapp.training.pocket.scenes import SIDE
from streamapp.training.pocket.work import Work

BATCH, STEPS, RATE = 64, 1400, 2e-3
#: Side of what it looks at, in pixels.
LOOK = 64


def network(classes: int) -> nn.Module:
    """Pictures ``(B, 3, 64, 64)`` in [−1, 1] to scores ``(B, classes)``."""
    layers: list[nn.Module] = []
    before = 3
    for width in (24, 48, 96, 160):
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(before * 16, classes))


def look(picture: Image.Image) -> torch.Tensor:
    """A picture of any size as the network takes it, ``(3, 64, 64)``."""
    small = picture.convert("RGB").resize((LOOK, LOOK), Image.Resampling.BOX)
    pixels: npt.NDArray[np.float32] = np.asarray(small, dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


def train(work: Work, steps: int = STEPS) -> None:
    """Write ``classifier.pt`` and how good it is on pictures it never saw, unless it is there."""
    if work.path("classifier.pt").exists():
        return
    torch.manual_seed(work.seed)
    known = data.load(work)
    net = network(len(known.concepts))
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in tqdm(range(steps), "classifier", mininterval=5):
        pictures, truth = _views(known, BATCH, random.Random(f"{work.seed} classifier {step}"))
        loss = nn.functional.cross_entropy(net(pictures), truth, label_smoothing=0.05)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    net.eval()
    pictures, truth = _views(known, 4 * len(known.concepts), random.Random(f"{work.seed} never seen"))
    with torch.inference_mode():
        right = float((net(pictures).argmax(dim=1) == truth).float().mean())
    work.write("classifier.pt", lambda part: torch.save(net.state_dict(), part))
    work.note(classifier={"steps": steps, "right": round(right, 4)})


def load(work: Work, classes: int) -> nn.Module:
    """The trained network."""
    net = network(classes)
    net.load_state_dict(torch.load(work.path("classifier.pt"), weights_only=True))
    return net.eval()


@torch.inference_mode()
def ranks(net: nn.Module, pictures: Sequence[Image.Image], wanted: Sequence[int]) -> list[int]:
    """How many classes the network prefers to the wanted one, of each picture: 0 is right."""
    scores = net(torch.stack([look(picture) for picture in pictures]))
    mine = scores[torch.arange(len(wanted)), torch.tensor(wanted)]
    return [int(count) for count in (scores > mine[:, None]).sum(dim=1)]


def _views(known: data.Data, count: int, chance: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    truth = [chance.randrange(len(known.concepts)) for _ in range(count)]
    return torch.stack([look(_view(known.pictures[concept], chance)) for concept in truth]), torch.tensor(truth)


def _view(picture: Pixels, chance: random.Random) -> Image.Image:
    """An icon as a model might draw it."""
    if chance.random() < 0.45:
        picture = coloured(picture, chance.choice(list(HUES)))
    if chance.random() < 0.5:
        picture = picture[:, ::-1]
    side = chance.randint(72, 124)
    canvas = ground(chance.choice(list(GROUNDS)) if chance.random() < 0.5 else "white", SIDE)
    laid(canvas, resized(picture, side), chance.randint(0, SIDE - side), chance.randint(0, SIDE - side))
    corner = tuple(int(255 * part) for part in canvas[0, 0])
    image = Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8))
    image = image.rotate(chance.uniform(-12, 12), Image.Resampling.BILINEAR, fillcolor=corner)
    if chance.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(chance.uniform(0.5, 2.0)))
    noise = np.random.default_rng(chance.getrandbits(32)).normal(0, chance.uniform(0, 12), (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(image, dtype=np.float32) + noise).clip(0, 255).astype(np.uint8))
