"""LoRA files: what is read equals what diffusers makes of the same file; what would be drawn wrong is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamapp.engine import EngineError, Job, LoRA
from tests.engine import flow_references, references, tiny_flux
from tests.engine.references import TOLERANCE, Load
from tests.engine.test_exact import draw, error, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
WORDS = dict[str, Any]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("flux")
    return tiny_flux.flux(folder), folder


def factors(model: Any, prefix: str, rank: int = 4) -> dict[str, torch.Tensor]:
    """Of every query's and value's projection, in diffusers' layout."""
    torch.manual_seed(5)
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_v")):
            state[f"{prefix}.{name}.lora_A.weight"] = torch.randn(rank, module.in_features) * 0.3
            state[f"{prefix}.{name}.lora_B.weight"] = torch.randn(module.out_features, rank) * 0.3
    return state


def with_file(pipeline: Any, file: Path, wanted: Job, reference: Any, **given: Any) -> torch.Tensor:
    """What diffusers draws with a file."""
    with warnings.catch_warnings(action="ignore"):
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="ink", local_files_only=True)
    try:
        drawn: torch.Tensor = reference(pipeline, wanted, **given)
    finally:
        pipeline.unload_lora_weights()
    return drawn


SAID: dict[str, WORDS] = {
    "alpha": {"lora_alpha": 2},
    "of some layers": {"lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 1}},
    "by the root of the rank": {"lora_alpha": 4, "use_rslora": True},
}


@pytest.mark.parametrize("case", SAID)
def test_the_scale_that_the_header_says_counts(sd15: tuple[Any, Path], load: Load, tmp_path: Path, case: str) -> None:
    """Training scripts of diffusers write it there; without it something else comes out."""
    pipeline, folder = sd15
    state, file, bare = factors(pipeline.unet, "unet"), tmp_path / "ink.safetensors", tmp_path / "bare.safetensors"
    said = {"r": 4, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["to_q", "to_v"], **SAID[case]}
    save_file(state, file, {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in said.items()})})
    save_file(state, bare)
    engine = load(folder, "sd15")
    engine.load_lora("ink", file, model="m")
    engine.load_lora("bare", bare, model="m")
    wanted = job(seed=21, loras=[LoRA("ink")])
    drawn = draw(engine, [wanted, job(seed=21, loras=[LoRA("bare")])])
    expected = with_file(pipeline, file, wanted, references.reference)
    assert error(drawn[0, 0], expected) <= TOLERANCE
    assert error(drawn[1, 0], expected) > 1e-3


def _kohya(transformer: Any) -> dict[str, torch.Tensor]:
    """As sd-scripts writes it: one factor for query, key and value together; biases that are zero."""
    width, state = transformer.inner_dim, {}
    for name in ("img_attn_qkv", "txt_attn_qkv"):
        layer = f"lora_unet_double_blocks_0_{name}"
        state[f"{layer}.lora_down.weight"] = torch.randn(4, width) * 0.3
        state[f"{layer}.lora_up.weight"] = torch.randn(3 * width, 4) * 0.3
        state[f"{layer}.alpha"] = torch.tensor(2.0)
    return {**state, "lora_unet_double_blocks_0_img_attn_qkv.diff_b": torch.zeros(3 * width)}


def _xlabs(transformer: Any) -> dict[str, torch.Tensor]:
    width, layer = transformer.inner_dim, "double_blocks.0.processor.qkv_lora1"
    return {
        f"{layer}.down.weight": torch.randn(4, width) * 0.3,
        f"{layer}.up.weight": torch.randn(3 * width, 4) * 0.3,
    }


@pytest.mark.parametrize("layout", [_kohya, _xlabs])
def test_layouts_of_flux_are_read(flux: tuple[Any, Path], load: Load, tmp_path: Path, layout: Any) -> None:
    pipeline, folder = flux
    torch.manual_seed(3)
    file = tmp_path / "ink.safetensors"
    save_file(layout(pipeline.transformer), file)
    engine = load(folder, "flux")
    engine.load_lora("ink", file, model="m")
    wanted = job(seed=21, loras=[LoRA("ink")])
    drawn = draw(engine, [wanted, job(seed=21)])
    expected = with_file(pipeline, file, wanted, flow_references.reference, guidance_scale=3.0)
    assert error(drawn[0, 0], expected) <= TOLERANCE
    assert error(drawn[1, 0], expected) > 1e-3


LAYER = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
KOHYA = {f"lora_unet_{LAYER}.lora_down.weight": (4, 16), f"lora_unet_{LAYER}.lora_up.weight": (16, 4)}
#: Further keys of a file → what it is called.
OTHERS: dict[str, tuple[str, ...]] = {
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LoKr": ("lokr_w1", "lokr_w2"),
    "LoKr ": ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
    "DoRA": ("dora_scale",),
    "DoRA ": ("lora_magnitude_vector.weight",),
    "LoCon with a Tucker core": ("lora_mid.weight",),
    "OFT": ("oft_blocks",),
    "IA3": ("weight", "on_input"),
    "LoRA with norms": ("w_norm", "b_norm"),
    "LoRA with whole differences": ("diff",),
    "LoRA with biases": ("diff_b",),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_other_kinds_are_told_by_their_keys_and_refused_by_name(
    request: pytest.FixtureRequest, engines: dict[str, Any], tmp_path: Path, family: str, kind: str
) -> None:
    """Also where plain factors stand beside them: part of a LoRA is another picture."""
    request.getfixturevalue(family)
    state = {f"lora_unet_{LAYER}.{ending}": torch.ones(4, 4) for ending in OTHERS[kind]}
    state |= {key: torch.ones(shape) for key, shape in KOHYA.items()}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(EngineError, match=f"is a {kind.strip()}, which is not supported") as caught:
        engines[family].load_lora("other", tmp_path / "other.safetensors", model="m")
    assert caught.value.code == "incompatible_lora"
    assert engines[family].stats()["loras"] == {}


@pytest.fixture(scope="module")
def engines(sd15: Any, sdxl: Any, flux: Any) -> Any:
    from streamapp.engine import Engine

    made = {}
    for family, (_, folder) in {"sd15": sd15, "sdxl": sdxl, "flux": flux}.items():
        made[family] = Engine(max_batch_rows=8)
        made[family].load("m", folder, family)
    yield made
    for engine in made.values():
        engine.close()


def test_what_nothing_would_be_done_with_is_refused_naming_it(
    engines: dict[str, Any], sd15: tuple[Any, Path], flux: tuple[Any, Path], tmp_path: Path
) -> None:
    """A bias beside the factors, and factors for an encoder that LoRAs of the family do not change."""
    file = tmp_path / "ink.safetensors"
    state = factors(sd15[0].unet, "unet")
    key = next(key for key in state if "lora_B" in key)
    save_file({**state, key.replace("weight", "bias"): torch.ones(8)}, file)
    with pytest.raises(EngineError, match=r"lora_B\.bias, which is neither of two factors"):
        engines["sd15"].load_lora("ink", file, model="m")
    stem = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    extra = {f"{stem}.lora_A.weight": torch.ones(4, 8), f"{stem}.lora_B.weight": torch.ones(8, 4)}
    save_file({**factors(flux[0].transformer, "transformer"), **extra}, file)
    with pytest.raises(EngineError, match="has factors for text_encoder_2, which LoRAs do not change here"):
        engines["flux"].load_lora("ink", file, model="m")
