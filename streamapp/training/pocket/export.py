"""Stage "export": the pipeline as a diffusers folder and as one file, in half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from streamapp.training.ldm_file import write_ldm
from streamapp.training.pocket import networks, vocabulary
from streamapp.training.pocket.decoder import put
from streamapp.training.pocket.latents import folded_vae
from streamapp.training.pocket.work import Work


def pipeline(work: Work) -> Any:
    """A ``StableDiffusionPipeline`` of the moving averages as they are now, float32."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    kind: Any = StableDiffusionPipeline
    tokenizer = vocabulary.load(work)
    means = torch.load(work.path("denoiser.pt"), weights_only=True)["means"]
    unet, text = networks.unet().eval(), networks.text_encoder(len(tokenizer)).eval()
    unet.load_state_dict(means["unet"])
    text.load_state_dict(means["text"])
    vae = folded_vae(work)
    put(work, vae)
    scheduler: Any = DDIMScheduler
    return kind(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(**networks.SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(work: Work) -> Path:
    """Write the folder ``model``, and ``pocket.safetensors`` in the published layout; what is there is replaced."""
    folder = work.path("model")
    made = pipeline(work).to(torch.float16)
    made.save_pretrained(folder, safe_serialization=True)
    # Loaded without a dtype, the encoder would stay in half beside a U-Net in single precision.
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    for file in folder.glob("*/config.json"):
        known = json.loads(file.read_text())
        known.pop("_name_or_path", None)
        file.write_text(json.dumps(known, indent=2) + "\n")
    work.write("pocket.safetensors", lambda part: write_ldm(folder, part))
    return folder
