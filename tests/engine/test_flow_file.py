"""Flux and Stable Diffusion 3 in one file: the same weights, bit for bit, as from a folder; what lacks is named."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from streamapp.engine import Engine, EngineError
from streamapp.engine.families import flux as flux_family
from streamapp.engine.families import sd3 as sd3_family
from streamapp.engine.flow_architectures import FlowArchitecture, flow_architecture, prefix_of
from streamapp.engine.flow_file import read_flow_file
from streamapp.engine.pipeline_folder import Part, read_parts
from tests.engine import flow_file_writer as writer
from tests.engine import tiny, tiny_flux, tiny_sd3
from tests.engine.test_exact import draw, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array__.*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
#: Two attentions in the first block, and norms: what 3.5 medium has and 3 medium has not.
MEDIUM: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
MAKE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "dev": ("flux", tiny_flux.flux),
    "schnell": ("flux", lambda folder: tiny_flux.flux(folder, guided=False)),
    "sd35": ("sd3", lambda folder: tiny_sd3.sd3(folder, **MEDIUM)),
    "sd3": ("sd3", lambda folder: tiny_sd3.sd3(folder, num_attention_heads=1, attention_head_dim=64,
                                               caption_projection_dim=64)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / kind
            MAKE[kind][1](made[kind])
        return made[kind]

    return folder


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((folder / "config.json").read_bytes())
    return {name: value for name, value in found.items() if not name.startswith("_")}


def small(file: Path, folder: Path, family: str) -> FlowArchitecture:
    """The transformer as the file shows it, encoders and VAE of the tiny pipeline, which no published file has."""
    state = load_file(file)
    begin = prefix_of(family, state)
    assert begin is not None
    shapes = {name.removeprefix(begin): tuple(tensor.shape) for name, tensor in state.items()}
    found = flow_architecture(family, shapes, file.name)
    clips = {name: config(folder / part) for part, name in writer.parts(family).items() if name in ("clip_l", "clip_g")}
    return replace(found, vae=config(folder / "vae"), clips=clips)


def words() -> dict[str, Any]:
    return {"clip_l": tiny.tokenizer(), "clip_g": tiny.tokenizer("!"), "t5": tiny_sd3.t5()[0]}


def read(file: Path, folder: Path, family: str, named: Any = None, dtype: torch.dtype = torch.float32) -> Any:
    given: dict[str, Any] = {"architecture": small(file, folder, family), "tokenizers": words()}
    return read_flow_file(file, family, dtype, named, **given)[0]


def modules(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def from_folder(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    pools = "CLIPTextModelWithProjection" if family == "sd3" else "CLIPTextModel"
    kinds = {"clip_l": pools, "clip_g": pools, "t5": "T5EncoderModel"}
    wanted = {
        part: Part("transformers", kinds[name], dtype)
        for part, name in writer.parts(family).items()
        if name != "vae" and (folder / part).is_dir()
    }
    wanted["vae"] = Part("diffusers", "AutoencoderKL", torch.float32)
    kind = "FluxTransformer2DModel" if family == "flux" else "SD3Transformer2DModel"
    return read_parts(folder, {**wanted, "transformer": Part("diffusers", kind, dtype)})[0]


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, module in theirs.items():
        one, other = ours[name].state_dict(), module.state_dict()
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == [], name
        buffers = dict(module.named_buffers())
        assert [key for key, value in ours[name].named_buffers() if not torch.equal(value, buffers[key])] == []


@pytest.fixture
def nan_first() -> Iterator[None]:
    """Memory that is asked for and not filled holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("nan_first")
def test_a_file_and_a_folder_give_the_same_components(
    folders: Any, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    family, folder = MAKE[kind][0], folders(kind)
    file = writer.write(folder, tmp_path / "x.safetensors", family)
    expected = from_folder(folder, family, dtype)
    found = modules(read(file, folder, family, dtype=dtype))
    same(found, expected)
    for name, module in found.items():
        assert not any(tensor.isnan().any() for tensor in module.state_dict().values())
        theirs = expected[name].config
        for key, value in dict(module.config).items() if name in ("transformer", "vae") else ():
            if not key.startswith("_") and key != "sample_size":
                assert value == theirs[key] or list(value) == list(theirs[key]), (name, key)


@pytest.mark.parametrize("kind", ["dev", "sd35"])
def test_a_picture_from_a_file_is_the_picture_from_the_folder(
    folders: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, folder = MAKE[kind][0], folders(kind)
    file = writer.write(folder, tmp_path / "x.safetensors", family)
    scheduler = orjson.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())
    module = flux_family if family == "flux" else sd3_family

    def read_small(path: Path, family: str, dtype: torch.dtype, named: Any = None) -> Any:
        return read(path, folder, family, named, dtype), scheduler

    monkeypatch.setattr(module, "read_flow_file", read_small)
    engine = Engine()
    engine.load("file", file, family)
    engine.load("folder", folder, family)
    drawn = draw(engine, [job(model=name, seed=7) for name in ("file", "folder")])
    engine.close()
    assert torch.equal(drawn[0, 0], drawn[1, 0])


@pytest.mark.parametrize("kind", ["dev", "sd35"])
def test_what_a_file_lacks_comes_from_what_is_named(folders: Any, tmp_path: Path, kind: str) -> None:
    """From files of their own, from another whole file, from a folder of the component and of a checkpoint."""
    family, folder = MAKE[kind][0], folders(kind)
    alone = writer.write(folder, tmp_path / "alone.safetensors", family, whole=False, prefix="")
    whole = writer.write(folder, tmp_path / "whole.safetensors", family)
    own: dict[str, Path] = {}
    for part, name in writer.parts(family).items():
        own[name] = tmp_path / f"{name}.safetensors"
        tensors = writer.vae(folder / part) if name == "vae" else load_file(next((folder / part).glob("*.safetensors")))
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, own[name])
    expected = from_folder(folder, family)
    one = {name: folder / part for part, name in writer.parts(family).items()}
    for named in (own, dict.fromkeys(own, whole), dict.fromkeys(own, folder), one):
        same(modules(read(alone, folder, family, named)), expected)
    with pytest.raises(EngineError, match=r"alone\.safetensors has no .*VAE") as caught:
        read(alone, folder, family)
    needed = {"vae", "clip_l", "t5"} if family == "flux" else {"vae", "clip_l", "clip_g"}
    assert set(caught.value.details["lacking"]) == needed
    with pytest.raises(EngineError, match="named for the CLIP-L, holds none"):
        read(alone, folder, family, {**own, "clip_l": own["vae"]})
    begin = {name: str(path.relative_to(tmp_path)) for name, path in own.items()}
    (tmp_path / "alone.components.json").write_bytes(orjson.dumps(begin))
    same(modules(read(alone, folder, family)), expected)
    (tmp_path / "alone.components.json").write_bytes(orjson.dumps({"lungs": "x"}))
    with pytest.raises(EngineError, match=r"alone\.components\.json must be an object"):
        read(alone, folder, family)
    (tmp_path / "alone.components.json").unlink()
    if family == "sd3":
        without = read(alone, folder, family, {name: path for name, path in own.items() if name != "t5"})
        assert without["text_encoder_3"] is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("dev", "model.diffusion_model.single_blocks.0.linear1.weight"),
        ("dev", "model.diffusion_model.guidance_in.out_layer.bias"),
        ("dev", "text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight"),
        ("dev", "vae.decoder.conv_out.bias"),
        ("sd35", "model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.bias"),
        ("sd35", "model.diffusion_model.joint_blocks.1.context_block.adaLN_modulation.1.weight"),
        ("sd35", "text_encoders.clip_g.transformer.text_projection.weight"),
    ],
)
def test_every_parameter_comes_from_the_file(folders: Any, tmp_path: Path, kind: str, name: str) -> None:
    family, folder = MAKE[kind][0], folders(kind)
    file = writer.write(folder, tmp_path / "whole.safetensors", family)
    state, part = load_file(file), tmp_path / "part.safetensors"
    save_file({key: tensor for key, tensor in state.items() if key != name}, part)
    with pytest.raises(EngineError, match="lacks ") as caught:
        read(part, folder, family)
    assert caught.value.code == "load_failed"
    save_file({**state, name: torch.zeros(5, *state[name].shape[1:])}, part)
    with pytest.raises(EngineError, match="has another shape of"):
        read(part, folder, family)
    if not name.startswith("vae."):
        save_file({**state, f"{name}s": state[name].clone()}, part)
        with pytest.raises(EngineError, match="has unknown"):
            read(part, folder, family)


def test_plain_fp8_is_cast_up_and_scaled_fp8_multiplied(folders: Any, tmp_path: Path) -> None:
    folder = folders("dev")
    state = load_file(writer.write(folder, tmp_path / "whole.safetensors", "flux"))
    begin, file = "model.diffusion_model.", tmp_path / "eight.safetensors"
    eight = {name: t.to(torch.float8_e4m3fn) if name.startswith(begin) else t for name, t in state.items()}
    save_file(eight, file)
    weight = read(file, folder, "flux")["transformer"].x_embedder.weight
    assert torch.equal(weight, state[f"{begin}img_in.weight"].to(torch.float8_e4m3fn).float())
    scaled = {**eight, f"{begin}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
              f"{begin}single_blocks.0.linear1.scale_weight": torch.tensor(0.5),
              f"{begin}single_blocks.0.linear1.scale_input": torch.tensor(3.0)}  # fmt: skip
    save_file(scaled, file)
    found, joined = read(file, folder, "flux")["transformer"], eight[f"{begin}single_blocks.0.linear1.weight"].float()
    attention = found.single_transformer_blocks[0].attn
    assert torch.equal(attention.to_q.weight, 0.5 * joined[: attention.to_q.weight.shape[0]])
    assert torch.equal(
        attention.to_q.bias, eight[f"{begin}single_blocks.0.linear1.bias"].float()[: len(attention.to_q.bias)]
    )
    assert torch.equal(found.x_embedder.weight, weight)


@pytest.mark.parametrize(
    ("suffix", "says"),
    [("quant_state.bitsandbytes__nf4", "four bits"), ("absmax", "four bits"), ("weight_scale", "scales")],
)
def test_other_encodings_are_refused_by_name(folders: Any, tmp_path: Path, suffix: str, says: str) -> None:
    folder, file = folders("dev"), tmp_path / "x.safetensors"
    whole = writer.write(folder, tmp_path / "whole.safetensors", "flux")
    for module in ("model.diffusion_model.img_in", "text_encoders.t5xxl.transformer.shared"):
        name = f"{module}.weight.{suffix}"
        save_file({**load_file(whole), name: torch.zeros(1)}, file)
        with pytest.raises(EngineError, match=says) as caught:
            read(file, folder, "flux")
        assert name in caught.value.message


def test_a_file_of_another_family_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    for family, title in (("flux", r"Flux\.1"), ("sd3", "Stable Diffusion 3")):
        with pytest.raises(EngineError, match=f"holds no {title} transformer"):
            read_flow_file(file, family, torch.float32)
