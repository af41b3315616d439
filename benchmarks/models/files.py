"""A checkpoint in one file of Stable Diffusion's layout, narrower, and cold pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
import transformers

from streamapp.engine import architectures
from streamapp.engine.architectures import Architecture, Text
from streamapp.engine.families import sd15
from streamapp.engine.single_file import Components, read_single_file
from streamapp.training.ldm_file import write_ldm
from tests.engine import tiny

WIDTHS, TEXT_WIDTH = (128, 256, 512, 512), 256
TEXT = {**architectures.CLIP_L, "hidden_size": TEXT_WIDTH, "intermediate_size": 1024, "num_attention_heads": 4}
VAE = {**architectures.VAE, "block_out_channels": [32, 64, 128, 128]}


def architecture() -> Architecture:
    """As many tensors as Stable Diffusion 1.5 has, of less than half the width."""
    whole = architectures.sd15()
    unet = {**whole.unet, "block_out_channels": list(WIDTHS), "cross_attention_dim": TEXT_WIDTH}
    return replace(whole, name="narrow", unet=unet, vae=VAE, texts=(Text(TEXT),))


def checkpoint(folder: Path, seed: int) -> Path:
    """A file with random weights, float32 as the modules that it is read into (about 640 MB)."""
    torch.manual_seed(seed)
    shape = architecture()
    unet: Any = diffusers.UNet2DConditionModel
    vae: Any = diffusers.AutoencoderKL
    config: Any = transformers.CLIPTextConfig
    text: Any = transformers.CLIPTextModel
    whole = folder / f"folder-{seed}"
    unet(**shape.unet).save_pretrained(whole / "unet")
    vae(**shape.vae).save_pretrained(whole / "vae")
    text(config(**TEXT)).save_pretrained(whole / "text_encoder")
    return write_ldm(whole, folder / f"checkpoint-{seed}.safetensors")


def read(path: Path, dtype: torch.dtype = torch.float32, into: Components | None = None) -> Components:
    """The engine's reader, told what no published file has: the architecture, and a small vocabulary."""
    return read_single_file(path, dtype, architecture=architecture(), tokenizer=lambda _: tiny.tokenizer(), into=into)


@contextmanager
def readable() -> Iterator[None]:
    """Engines read such files meanwhile."""
    with mock.patch.object(sd15, "read_single_file", read):
        yield


def drop(path: Path) -> None:
    """Take a file out of the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def heat(path: Path) -> None:
    """Bring a file into the page cache."""
    piece = bytearray(1 << 23)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def held() -> int:
    """Bytes of this process's memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024
