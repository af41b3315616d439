"""The layouts of Flux and Stable Diffusion 3: published sizes, and what diffusers' converter makes of a known width."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils

from streamapp.engine import flow_architectures
from streamapp.engine.architectures import CLIP_G, CLIP_L
from streamapp.engine.flow_architectures import flow_architecture, t5_encoder
from streamapp.engine.layouts import LAYOUTS
from tests.engine import flow_file_writer as writer

models: Any = diffusers
MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
#: What was published, in diffusers' words, and how many parameters that has.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "dev": ("flux", {"guidance_embeds": True}, 11_901_408_320),
    "schnell": ("flux", {}, 11_891_178_560),
    "sd3-medium": ("sd3", MEDIUM, 2_028_328_000),
    "sd3.5-medium": (
        "sd3",
        {**MEDIUM, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
        2_243_171_520,
    ),
    "sd3.5-large": (
        "sd3",
        {**MEDIUM, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
        8_056_627_520,
    ),
}
KINDS = {"flux": "FluxTransformer2DModel", "sd3": "SD3Transformer2DModel"}


def made(family: str, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return getattr(models, KINDS[family])(**config)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_architectures_are_told_from_the_shapes_of_their_files(name: str) -> None:
    family, config, count = PUBLISHED[name]
    theirs = made(family, config)
    file = writer.transformer(theirs.state_dict(), family)
    found = flow_architecture(family, {key: tuple(tensor.shape) for key, tensor in file.items()}, name)
    ours = made(family, dict(found.transformer))
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    for key, value in theirs.config.items():
        mine = ours.config.get(key)
        assert key.startswith("_") or mine == value or list(mine) == list(value), key


def test_text_encoders_and_vaes_have_the_published_size() -> None:
    library: Any = transformers
    t5 = {
        "shared.weight": (32128, 4096),
        "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64),
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (10240, 4096),
        "encoder.block.0.layer.1.DenseReluDense.wo.weight": (4096, 10240),
        "encoder.block.23.layer.0.SelfAttention.q.weight": (4096, 4096),
    }
    with torch.device("meta"):
        encoders = [library.T5EncoderModel(library.T5Config(**t5_encoder(t5)))]
        encoders += [
            library.CLIPTextModelWithProjection(library.CLIPTextConfig(**config)) for config in (CLIP_L, CLIP_G)
        ]
        vaes = [models.AutoencoderKL(**config) for config in flow_architectures.VAES.values()]
    assert [sum(p.numel() for p in module.parameters()) for module in encoders] == [
        4_762_310_656,
        123_060_480 + 768 * 768,
        694_659_840,
    ]
    assert {sum(p.numel() for p in vae.parameters()) for vae in vaes} == {83_819_683}


@pytest.mark.parametrize(
    ("family", "config", "convert"),
    [
        ("flux", {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True},
         single_file_utils.convert_flux_transformer_checkpoint_to_diffusers),
        ("sd3", {**PUBLISHED["sd3.5-medium"][1], "num_layers": 2, "dual_attention_layers": (0,)},
         single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers),
        ("sd3", {**MEDIUM, "num_layers": 2}, single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers),
    ],
)  # fmt: skip
def test_every_row_goes_where_diffusers_converter_puts_it(family: str, config: dict[str, Any], convert: Any) -> None:
    """At the one width that it knows; a tensor's columns are all alike, so one stands for them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in made(family, config).state_dict().items()}
    layout = LAYOUTS[family](shapes)
    assert layout.keys() == shapes.keys()
    file: dict[str, torch.Tensor] = {}
    for number, source in enumerate({piece.source for piece in layout.values()}):
        rows = sum(shapes[name][0] for name, piece in layout.items() if piece.source == source)
        column = torch.arange(rows, dtype=torch.float64) + number * 1e6
        file[source] = column if source.endswith((".bias", ".scale", "ln_q.weight", "ln_k.weight")) else column[:, None]
    expected = convert(dict(file))
    assert expected.keys() == shapes.keys()
    for name, piece in layout.items():
        rows = file[piece.source][piece.begin : piece.end]
        ours = torch.cat([*reversed(rows.chunk(2))]) if piece.swapped else rows
        assert torch.equal(ours, expected[name]), name
