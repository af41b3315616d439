"""Stable Diffusion 1.5 and XL with random weights, at their true widths or tiny, as folders that anything can load."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = string.ascii_lowercase + string.digits + ",."
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), BEGIN, END]
UNETS: dict[tuple[str, bool], dict[str, Any]] = {
    ("sd15", False): {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    ("sdxl", False): {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}
UNETS["sd15", True] = {**TINY, "cross_attention_dim": 32}
UNETS["sdxl", True] = {
    **TINY,
    "cross_attention_dim": 64,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
#: Hidden, inner, layers, heads of both text encoders.
TEXTS = {False: ((768, 3072, 12, 12), (1280, 5120, 32, 20)), True: ((32, 64, 2, 2), (32, 64, 2, 2))}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def write(folder: Path, family: str, tiny: bool, device: str, dtype: torch.dtype) -> None:
    """A pipeline's folder; weights are drawn on the device, in ``dtype``."""
    with _drawing(device, dtype, seed=0):
        pipeline = _pipeline(family, tiny)
    pipeline.save_pretrained(folder, safe_serialization=True)


def write_other(folder: Path, other: Path, family: str, tiny: bool, device: str, dtype: torch.dtype) -> None:
    """A second checkpoint: the same but for its U-Net."""
    made: Any = diffusers.UNet2DConditionModel
    other.mkdir()
    for part in folder.iterdir():
        if part.name != "unet":
            (other / part.name).symlink_to(part)
    with _drawing(device, dtype, seed=1):
        unet = made(**UNETS[family, tiny])
    unet.save_pretrained(other / "unet", safe_serialization=True)


@contextmanager
def _drawing(device: str, dtype: torch.dtype, seed: int) -> Iterator[None]:
    """Modules made here are on the device, in this type."""
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _pipeline(family: str, tiny: bool) -> Any:
    # Typed as Any: diffusers and transformers annotate their constructors in part.
    made: Any = diffusers
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = (
        {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}
        if tiny
        else {"block_out_channels": (128, 256, 512, 512)}
    )
    vae = made.AutoencoderKL(
        **blocks,
        **widths,
        layers_per_block=1 if tiny else 2,
        latent_channels=4,
        sample_size=64 if tiny else 512,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
    )
    parts = {
        "vae": vae,
        "unet": made.UNet2DConditionModel(**UNETS[family, tiny]),
        "scheduler": made.DDIMScheduler(**SCHEDULER),
        "text_encoder": _text(TEXTS[tiny][0], pools=False),
        "tokenizer": _tokenizer(),
    }
    if family == "sdxl":
        second = {"text_encoder_2": _text(TEXTS[tiny][1], pools=True), "tokenizer_2": _tokenizer()}
        return made.StableDiffusionXLPipeline(**parts, **second)
    return made.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _tokenizer() -> Any:
    kind: Any = transformers.CLIPTokenizer
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    words = {"unk_token": END, "bos_token": BEGIN, "eos_token": END, "pad_token": END}
    return kind(vocab=vocabulary, merges=[], model_max_length=77, **words)


def _text(widths: tuple[int, int, int, int], pools: bool) -> Any:
    settings: Any = transformers.CLIPTextConfig
    hidden, inner, layers, heads = widths
    begin, end = VOCABULARY.index(BEGIN), VOCABULARY.index(END)
    config = settings(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        projection_dim=hidden,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=end,
    )
    kind: Any = transformers.CLIPTextModelWithProjection if pools else transformers.CLIPTextModel
    return kind(config)


def write_loras(folder: Path, unet: Any, names: list[str], rank: int) -> None:
    """LoRA files for all attention layers of a U-Net."""
    folder.mkdir(exist_ok=True)
    layers = dict(_attention(unet))
    for seed, name in enumerate(names):
        chance = torch.Generator("cpu").manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for layer, (out, into) in layers.items():
            down, up = torch.randn(rank, into, generator=chance), torch.randn(out, rank, generator=chance)
            tensors[f"unet.{layer}.lora_A.weight"] = (down / into**0.5).half()
            tensors[f"unet.{layer}.lora_B.weight"] = (up / rank**0.5 / 4).half()
        save_file(tensors, folder / f"{name}.safetensors")


def _attention(unet: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in {"to_q", "to_k", "to_v"}:
            yield name, (module.out_features, module.in_features)
