"""Checkpoints in one file: the same weights, bit for bit, as from a folder; what is missing is named."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from streamapp.engine import architectures
from streamapp.engine.architectures import Architecture, Text, architecture_of
from streamapp.engine.clip_vocabulary import clip_tokenizer
from streamapp.engine.component_list import list_of
from streamapp.engine.engine import Engine
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device, sd15
from streamapp.engine.folder import read_folder
from streamapp.engine.single_file import Components, read_single_file, tokenizer_of
from streamapp.models.catalogue import HERE
from streamapp.training.ldm_file import write_ldm
from tests.engine.test_exact import draw, job

POCKET = HERE / "pocket"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array__.*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*"),
]


def read(part: str) -> dict[str, Any]:
    config: dict[str, Any] = orjson.loads((POCKET / part / "config.json").read_bytes())
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def small() -> Architecture:
    """The architecture of the model that ships, which no published file has."""
    scheduler = orjson.loads((POCKET / "scheduler" / "scheduler_config.json").read_bytes())
    return Architecture("pocket", read("unet"), read("vae"), (Text(read("text_encoder")),), scheduler)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ldm(POCKET, tmp_path_factory.mktemp("ldm") / "pocket.safetensors")


def same(one: Any, other: Any) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_file_and_a_folder_give_the_same_components(file: Path, small: Architecture) -> None:
    from_file = read_single_file(file, torch.float32, architecture=small, tokenizer=lambda _: None)
    from_folder = read_folder(POCKET, torch.float32, {"text_encoder": "tokenizer"})
    ((_, text),) = from_folder.texts
    ((_, ours_text),) = from_file.texts
    for ours, theirs in ((from_file.unet, from_folder.unet), (from_file.vae, from_folder.vae), (ours_text, text)):
        same(ours, theirs)
    assert from_file.scheduler == from_folder.scheduler
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(ours_text(ids).last_hidden_state, text(ids).last_hidden_state)


def test_a_picture_from_a_file_is_the_picture_from_the_folder(
    file: Path, small: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPTokenizer

    def read_small(path: Path, dtype: torch.dtype) -> Components:
        tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer", local_files_only=True)
        return read_single_file(path, dtype, architecture=small, tokenizer=lambda _: tokenizer)

    monkeypatch.setattr(sd15, "read_single_file", read_small)
    engine = Engine()
    engine.load("file", file, "sd15")
    engine.load("folder", POCKET, "sd15")
    drawn = draw(engine, [job(model=name, seed=7) for name in ("file", "folder")])
    assert torch.equal(drawn[0, 0], drawn[1, 0])


def test_every_parameter_comes_from_the_file(file: Path, small: Architecture, tmp_path: Path) -> None:
    state = load_file(file)
    for missing in ("model.diffusion_model.time_embed.0.bias", "first_stage_model.decoder.conv_out.bias",
                    "cond_stage_model.transformer.text_model.final_layer_norm.weight"):  # fmt: skip
        path = tmp_path / "part.safetensors"
        save_file({name: tensor for name, tensor in state.items() if name != missing}, path)
        with pytest.raises(EngineError, match="lacks ") as caught:
            read_single_file(path, torch.float32, architecture=small, tokenizer=lambda _: None)
        assert caught.value.code == "load_failed"


@pytest.mark.parametrize(("prefix", "what"), [("first_stage_model.", "VAE"), ("cond_stage_model.", "text encoder")])
def test_a_file_without_a_component_says_which(
    file: Path, small: Architecture, tmp_path: Path, prefix: str, what: str
) -> None:
    path = tmp_path / "part.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.startswith(prefix)}, path)
    with pytest.raises(EngineError, match=f"has no {what}"):
        read_single_file(path, torch.float32, architecture=small, tokenizer=lambda _: None)


def test_a_vae_that_the_file_lacks_comes_from_the_list_beside_it(
    file: Path, small: Architecture, tmp_path: Path
) -> None:
    begin, state, path = "first_stage_model.", load_file(file), tmp_path / "part.safetensors"
    save_file({name: tensor for name, tensor in state.items() if not name.startswith(begin)}, path)
    alone = {name.removeprefix(begin): tensor for name, tensor in state.items() if name.startswith(begin)}
    save_file(alone, tmp_path / "vae.safetensors")
    expected = read_single_file(file, torch.float32, architecture=small, tokenizer=lambda _: None)
    for named in ("vae.safetensors", str(file)):
        list_of(path).write_bytes(orjson.dumps({"vae": named}))
        same(read_single_file(path, torch.float32, architecture=small, tokenizer=lambda _: None).vae, expected.vae)
    list_of(path).write_bytes(orjson.dumps({"vae": path.name}))
    with pytest.raises(EngineError, match="named for the VAE, holds none"):
        read_single_file(path, torch.float32, architecture=small, tokenizer=lambda _: None)


def test_a_parameter_of_another_shape_is_named(file: Path, small: Architecture, tmp_path: Path) -> None:
    state = load_file(file)
    name = "model.diffusion_model.out.2.bias"
    path = tmp_path / "part.safetensors"
    save_file({**state, name: torch.zeros(9)}, path)
    with pytest.raises(EngineError, match=r"another shape of conv_out\.bias"):
        read_single_file(path, torch.float32, architecture=small, tokenizer=lambda _: None)


def test_the_marks_of_v_prediction_models_are_read(small: Architecture, tmp_path: Path) -> None:
    path = write_ldm(POCKET, tmp_path / "v.safetensors", v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    read = read_single_file(path, torch.float32, architecture=small, tokenizer=lambda _: None)
    assert read.scheduler["prediction_type"] == "v_prediction"
    assert read.scheduler["rescale_betas_zero_snr"] is True


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"x\.safetensors"):
        sd15.read(path, Device(), {})
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(EngineError, match="no Stable Diffusion 1 or 2 U-Net"):
        sd15.read(path, Device(), {})


#: Published counts, see https://huggingface.co/stable-diffusion-v1-5 and stabilityai/stable-diffusion-2-1.
COUNTS = {
    "sd15": (859_520_964, 83_653_863, 123_060_480),
    "sd2": (865_910_724, 83_653_863, 340_387_840),
    "sdxl": (2_567_463_684, 83_653_863, 123_060_480, 694_659_840),
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_published_architectures_have_the_published_size(name: str) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    parts = getattr(architectures, name)()
    unet_class: Any = UNet2DConditionModel
    vae_class: Any = AutoencoderKL
    settings: Any = CLIPTextConfig
    with torch.device("meta"):
        modules: list[Any] = [unet_class(**parts.unet), vae_class(**parts.vae)]
        for text in parts.texts:
            kind: Any = CLIPTextModelWithProjection if text.pools else CLIPTextModel
            modules.append(kind(settings(**text.config)))
    assert tuple(sum(p.numel() for p in module.parameters()) for module in modules) == COUNTS[name]
    unet = modules[0].state_dict()
    cross = unet["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape
    family = "sdxl" if name == "sdxl" else "sd15"
    shapes = {
        f"{architectures.UNET}input_blocks.0.0.weight": tuple(unet["conv_in.weight"].shape),
        f"{architectures.UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": tuple(cross),
    }
    assert architecture_of(shapes, "file", family) == parts


def test_the_vocabulary_is_clips_own() -> None:
    from open_clip.tokenizer import SimpleTokenizer  # type: ignore[import-untyped]

    ours, theirs = clip_tokenizer(), SimpleTokenizer(clean="lower")
    assert len(ours.get_vocab()) == 49_408
    for text in (
        "a photo of a cat",
        "a cute panda, 4k, (masterpiece:1.2)",
        "Äpfel & Öl's 可爱的熊猫 🐼!!",
        "it's 12345x",
        "",
    ):
        assert ours(text).input_ids == [49406, *theirs.encode(text), 49407], text


def test_a_missing_vocabulary_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamapp.engine.clip_vocabulary.find_spec", lambda _: None)
    with pytest.raises(EngineError, match="install open_clip_torch"):
        clip_tokenizer()


@pytest.mark.parametrize(("architecture", "padding"), [(architectures.sd15(), 49407), (architectures.sd2(), 0)])
def test_prompts_are_padded_as_the_encoder_was_trained(architecture: Architecture, padding: int) -> None:
    ids = tokenizer_of(architecture.texts[0])("", padding="max_length").input_ids
    assert ids == [49406, 49407, *[padding] * 75]
