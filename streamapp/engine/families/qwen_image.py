"""Qwen-Image: a Qwen2.5-VL text encoder, MMDiT over packed latents, a video VAE (Wu et al. 2025, arXiv 2508.02324).

A sample's latent equals that of ``QwenImagePipeline`` called for it alone with the job's guidance as
``true_cfg_scale``, a blank where the negative prompt is missing, and ``torch.Generator("cpu").manual_seed(seed + i)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from streamapp.engine.adapters import Combination
from streamapp.engine.clip import Conditioning
from streamapp.engine.decoding import pictures
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device
from streamapp.engine.mmdit import TOKEN, MMDiTCheckpoint, half
from streamapp.engine.packed import pack, unpack
from streamapp.engine.pipeline_folder import Part, read_parts
from streamapp.engine.sample import Sample

#: What the model was trained with; its first tokens, up to the prompt, are dropped from the encoding.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial"
    " relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
DROPPED = 34
#: Tokens of a prompt that are read, and that reach the transformer.
READ, TAKEN = 1024, 512


def read(path: Path, device: Device, options: Mapping[str, Any]) -> Any:
    """Read a diffusers folder, without any network.

    Raises:
        EngineError: ``load_failed`` with what is missing or unreadable.
    """
    if options.get("variant") is not None:
        raise EngineError("load_failed", f"qwen_image has no variant {options['variant']!r}")
    torch.set_num_threads(device.threads)
    dtype = half(device)
    parts, scheduler = read_parts(
        path,
        {
            "tokenizer": Part("transformers", "Qwen2Tokenizer"),
            "text_encoder": Part("transformers", "Qwen2_5_VLForConditionalGeneration", dtype),
            "transformer": Part("diffusers", "QwenImageTransformer2DModel", dtype),
            "vae": Part("diffusers", "AutoencoderKLQwenImage", torch.float32),
        },
    )
    config = parts["transformer"].config
    for name in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        if config.get(name):
            raise EngineError("load_failed", f"its transformer has {name}: only Qwen-Image itself is drawn so far")
    return parts, scheduler


def build(parts: Any, device: Device, options: Mapping[str, Any]) -> QwenImage:
    """A checkpoint of components that are on the device."""
    del options
    return QwenImage(device, *parts)


class QwenImage(MMDiTCheckpoint):
    """A loaded checkpoint; a sample's latents are packed as the pipeline's, ``(tokens, 4 C)``."""

    family = "qwen_image"
    lora_loader = "QwenImageLoraLoaderMixin"

    def __init__(self, device: Device, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        texts = {"text_encoder": parts["text_encoder"]}
        super().__init__(device, texts, (), parts["transformer"], parts["vae"], scheduler)
        self._tokenizer = parts["tokenizer"]

    def _negative(self, job: Any) -> str:
        """A blank where there is none: the pipeline guides only with a negative prompt."""
        return " " if job.negative_prompt is None else str(job.negative_prompt)

    def _even(self, job: Any) -> bool:
        del job
        return True

    def _encode(self, texts: Sequence[str], clip_skip: int, adapters: Combination) -> Sequence[Conditioning]:
        """The last states behind the template's first tokens; each by itself, so that none depends on the others."""
        del clip_skip, adapters
        return [Conditioning(self._states(text)) for text in texts]

    def _states(self, text: str) -> torch.Tensor:
        tokens = self._tokenizer(
            [TEMPLATE.format(text)], max_length=READ + DROPPED, truncation=True, return_tensors="pt"
        ).to(self._device.name)
        # Without the head, whose logits nobody reads.
        states = self._modules["text_encoder"].model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        last: torch.Tensor = states.last_hidden_state[0, DROPPED:][:TAKEN]
        return last

    def _laid(self, planes: torch.Tensor) -> torch.Tensor:
        return pack(planes)

    def _call(
        self, conditions: Sequence[Conditioning], latents: torch.Tensor, timesteps: torch.Tensor, rows: Sequence[Sample]
    ) -> torch.Tensor:
        text, mask = _padded([condition.text for condition in conditions])
        predicted: torch.Tensor = self._transformer(
            hidden_states=latents,
            timestep=timesteps.to(self._dtype) / 1000,
            encoder_hidden_states=text.to(self._dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, rows[0].job.height // TOKEN, rows[0].job.width // TOKEN)]] * len(conditions),
            return_dict=False,
        )[0]
        return predicted

    def _guided(self, base: torch.Tensor, model: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Also scaled back, token by token, to the length of the guided branch's prediction."""
        both = super()._guided(base, model, scale)
        lengths: list[torch.Tensor] = [torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (model, both)]
        return both * (lengths[0] / lengths[1])

    def _planes(self, sample: Sample) -> torch.Tensor:
        return unpack(sample.latents, sample.job.height // TOKEN, sample.job.width // TOKEN)

    def _pixels(self, vae: Any, planes: torch.Tensor, tiled: bool = False) -> torch.Tensor:
        config = vae.config
        mean, spread = (planes.new_tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return pictures(vae, (planes * spread + mean)[:, :, None], tiled)[:, :, 0]


def _padded(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Texts of one length, ``(B, tokens, width)``, and the mask of what is real, None when nothing was padded."""
    lengths = [text.shape[0] for text in texts]
    longest = max(lengths)
    if min(lengths) == longest:
        return torch.stack(list(texts)), None
    rows = torch.stack([functional.pad(text, (0, 0, 0, longest - text.shape[0])) for text in texts])
    real = torch.arange(longest, device=rows.device)[None] < torch.tensor(lengths, device=rows.device)[:, None]
    return rows, real
