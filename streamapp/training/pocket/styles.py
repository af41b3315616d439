"""Stage "styles": two small LoRAs that ship as examples, trained on what the icons look like in another manner.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), by peft on the U-Net's attention.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter, ImageOps
from tqdm import tqdm

from streamapp.training.pocket import data, denoiser
from streamapp.training.pocket.export import pipeline
from streamapp.training.pocket.scenes import shown
from streamapp.training.pocket.work import Work

RANK, STEPS, RATE, BATCH, SCENES = 8, 350, 1e-3, 16, 400


def ink(picture: Image.Image) -> Image.Image:
    """Bold dark contours and a grey wash on warm paper."""
    grey = picture.convert("L").filter(ImageFilter.GaussianBlur(0.7))
    corner: Any = grey.getpixel((0, 0))
    grey = ImageOps.expand(grey, 4, corner)
    edges = (
        grey.filter(ImageFilter.FIND_EDGES).point(lambda value: min(255, 5 * value)).filter(ImageFilter.MaxFilter(3))
    )
    wash = ImageOps.autocontrast(grey).point(lambda value: 90 if value < 70 else 205 if value < 150 else 255)
    drawn = ImageChops.darker(ImageOps.invert(edges).filter(ImageFilter.GaussianBlur(0.5)), wash)
    return ImageOps.colorize(ImageOps.crop(drawn, 4), (18, 20, 42), (250, 246, 230))


def duotone(picture: Image.Image) -> Image.Image:
    """Violet shadows, orange light."""
    return ImageOps.colorize(
        ImageOps.autocontrast(picture.convert("L")), (62, 22, 110), (255, 214, 150), mid=(226, 92, 120)
    )


STYLES: Mapping[str, Callable[[Image.Image], Image.Image]] = {"ink": ink, "duotone": duotone}


def train(work: Work, steps: int = STEPS) -> None:
    """Write ``styles/NAME.safetensors`` of each style, unless they are there."""
    for name in STYLES:
        if not (work.path("styles") / f"{name}.safetensors").exists():
            _train(work, name, steps)


def _train(work: Work, name: str, steps: int) -> None:
    from peft import LoraConfig

    torch.manual_seed(work.seed)
    known, pipe = data.load(work), pipeline(work)
    numbers = _chosen(known, work.seed)
    clean = _latents(pipe.vae, [STYLES[name](_image(known, number)) for number in numbers])
    pipe.unet.requires_grad_(False)
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers, init_lora_weights="gaussian"))
    weights = [weight for weight in pipe.unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in tqdm(range(steps), name, mininterval=5):
        chance = random.Random(f"{work.seed} {name} {step}")
        picked = [chance.randrange(len(numbers)) for _ in range(BATCH)]
        texts = [known.captions.of(known.scenes[numbers[place]], chance) for place in picked]
        losses, _ = denoiser.losses(
            pipe.unet, pipe.text_encoder, clean[picked], denoiser.tokens(pipe.tokenizer, texts, 1)
        )
        torch.autograd.backward(losses.mean())
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    _save(work.path("styles"), name, pipe)


def _save(folder: Path, name: str, pipe: Any) -> None:
    from peft.utils import get_peft_model_state_dict

    state = {key: value.half() for key, value in get_peft_model_state_dict(pipe.unet).items()}
    pipe.save_lora_weights(folder, unet_lora_layers=state, weight_name=f"{name}.safetensors")


def _chosen(known: data.Data, seed: int) -> list[int]:
    """Scenes of one thing, and a few of two."""
    chance = random.Random(f"{seed} styles")
    single = [n for n, scene in enumerate(known.scenes) if scene.kind in {"own", "moved"}]
    double = [n for n, scene in enumerate(known.scenes) if scene.kind == "pair"]
    return chance.sample(single, min(SCENES, len(single))) + chance.sample(double, min(SCENES // 8, len(double)))


def _image(known: data.Data, number: int) -> Image.Image:
    return Image.fromarray((shown(known.scenes[number], known.pictures).clip(0, 1) * 255).astype(np.uint8))


@torch.inference_mode()
def _latents(vae: Any, pictures: list[Image.Image]) -> torch.Tensor:
    made = []
    for start in range(0, len(pictures), 32):
        pixels = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures[start : start + 32]])
        batch = torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2)
        made.append(vae.encode(batch).latent_dist.mean)
    return torch.cat(made).clone()
