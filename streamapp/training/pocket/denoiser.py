"""Stage "denoiser": the U-Net and its text encoder learn together, in bfloat16 where the processor has it.

The loss is the plain one on velocities (Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion
Models", 2022), and most samples are noisy ones: words matter only where a picture is nearly all noise, which
weighting by signal-to-noise ratio starves.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from streamapp.training.pocket import data, networks, vocabulary
from streamapp.training.pocket.kept import Kept
from streamapp.training.pocket.optimizer import Optimizer, average
from streamapp.training.pocket.scenes import SHARES, Scene
from streamapp.training.pocket.work import Work

BATCH, RATE, REST, DECAY = 32, 2e-3, 1e-3, 0.999
#: Share of samples from the noisy steps, and where those begin.
NOISY, FROM = 0.55, 550
#: Windows of text that a batch has: prompts longer than one are joined, as in use.
WINDOWS = (1, 1, 1, 1, 1, 1, 1, 1, 2, 3)
#: Things that a smaller model drew badly, seen twice as often.
TWICE = {"cat", "dog", "fish", "horse", "dragon", "kitten", "puppy", "bird", "car"} | {
    *("raccoon", "hedgehog", "sloth", "snake", "shark", "airplane", "baseball")
}
REPORT = 100


class Sampler:
    """Draws what a batch shows."""

    def __init__(self, known: data.Data) -> None:
        self._known = known
        self._kinds = {kind: [n for n, scene in enumerate(known.scenes) if scene.kind == kind] for kind in SHARES}
        self._weights = {kind: [self._weight(known.scenes[n]) for n in group] for kind, group in self._kinds.items()}

    def _weight(self, scene: Scene) -> float:
        names = {self._known.concepts[thing.concept].words[0] for thing in scene.things}
        return 2.0 if names & TWICE else 1.0

    def batch(self, size: int, windows: int, chance: random.Random) -> tuple[list[int], list[str]]:
        """Numbers of scenes, and their captions."""
        kinds = chance.choices(list(SHARES), list(SHARES.values()), k=size)
        numbers = [chance.choices(self._kinds[kind], self._weights[kind])[0] for kind in kinds]
        long = 14 * (windows - 1)
        captions = self._known.captions
        return numbers, [captions.of(self._known.scenes[number], chance, long=long) for number in numbers]


def tokens(tokenizer: Any, texts: Sequence[str], windows: int) -> torch.Tensor:
    """Token ids ``(texts · windows, 32)``, each window with begin, end and padding."""
    size = networks.WINDOW - 2
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = []
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids:
        for window in range(windows):
            part = ids[window * size : (window + 1) * size]
            rows.append([begin, *part, *[end] * (size + 1 - len(part))])
    return torch.tensor(rows)


def train(rank: int, processes: int, work: Work, steps: int) -> None:
    """All steps, going on from the last kept state."""
    torch.manual_seed(work.seed)
    known, latents, tokenizer = data.load(work), torch.load(work.path("latents.pt")), vocabulary.load(work)
    unet, text = networks.unet(), networks.text_encoder(len(tokenizer))
    weights = {
        f"{part}.{name}": w for part, net in (("unet", unet), ("text", text)) for name, w in net.named_parameters()
    }
    optimizer = Optimizer(weights, RATE, REST, steps)
    kept = Kept(work, "denoiser", {"unet": unet, "text": text}, optimizer, DECAY)
    sampler, told = Sampler(known), Told(work)
    first = kept.step
    bar = tqdm(range(first, steps), "denoiser", initial=first, total=steps, disable=rank > 0, mininterval=10)
    for step in bar:
        windows = random.Random(f"{work.seed} windows {step}").choice(WINDOWS)
        chance = random.Random(f"{work.seed} denoiser {step} {rank}")
        torch.manual_seed(chance.getrandbits(32))
        numbers, captions = sampler.batch(BATCH // processes, windows, chance)
        found, times = losses(unet, text, latents[numbers], tokens(tokenizer, captions, windows))
        torch.autograd.backward(found.mean())
        average(list(weights.values()), 1 / processes)
        optimizer.step(step)
        kept.after(step, rank)
        if rank == 0:
            told.add(step, found.detach(), times)
    kept.done(rank)


def losses(unet: Any, text: Any, clean: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each sample, and its time step."""
    count = len(clean)
    noisy = torch.rand(count) < NOISY
    times = torch.where(noisy, torch.randint(FROM, 1000, (count,)), torch.randint(0, FROM, (count,)))
    signal = networks.alphas()[times].view(-1, 1, 1, 1)
    noise = torch.randn_like(clean)
    mixed = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * clean
    with torch.autocast("cpu", torch.bfloat16):
        states = text(ids).last_hidden_state
        predicted = unet(mixed, times, states.reshape(count, -1, states.shape[-1]), return_dict=False)[0]
    return (predicted.float() - velocity).square().mean(dim=(1, 2, 3)), times


class Told:
    """Writes the loss by time steps, and the speed, to ``denoiser.jsonl``."""

    BANDS = ((0, 350), (350, 650), (650, 1000))

    def __init__(self, work: Work) -> None:
        self._file = work.path("denoiser.jsonl")
        self._losses: list[torch.Tensor] = []
        self._times: list[torch.Tensor] = []
        self._began = time.monotonic()

    def add(self, step: int, losses: torch.Tensor, times: torch.Tensor) -> None:
        """One step's."""
        self._losses.append(losses)
        self._times.append(times)
        if (step + 1) % REPORT:
            return
        losses, times = torch.cat(self._losses), torch.cat(self._times)
        bands = {
            f"{low}-{high}": round(float(losses[(times >= low) & (times < high)].mean()), 4) for low, high in self.BANDS
        }
        now = time.monotonic()
        speed = round(BATCH * len(self._losses) / (now - self._began), 1)
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step + 1, "loss": bands, "samples_per_s": speed}) + "\n")
        self._losses, self._times, self._began = [], [], now
