"""SDXL in one file: both text encoders, one of them in OpenCLIP's layout, as bit for bit as from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from streamapp.engine.architectures import Architecture, Text
from streamapp.engine.engine import Engine
from streamapp.engine.errors import EngineError
from streamapp.engine.families import sdxl
from streamapp.engine.folder import read_folder
from streamapp.engine.single_file import Components, read_single_file
from streamapp.training.ldm_file import write_ldm
from tests.engine import tiny
from tests.engine.test_exact import draw, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array__.*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl") / "tiny"
    tiny.sdxl(folder)
    return folder


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return write_ldm(folder, folder.parent / "tiny.safetensors")


@pytest.fixture(scope="module")
def small(folder: Path) -> Architecture:
    """The architecture of the tiny pipeline, which no published file has."""

    def read(part: str, name: str = "config.json") -> dict[str, Any]:
        config: dict[str, Any] = orjson.loads((folder / part / name).read_bytes())
        return {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}

    texts = (
        Text(read("text_encoder"), prefix="conditioner.embedders.0."),
        Text(read("text_encoder_2"), prefix="conditioner.embedders.1.", open_clip=True, pools=True),
    )
    plain = [{key: value for key, value in read(part).items() if key != "_class_name"} for part in ("unet", "vae")]
    return Architecture("tiny", plain[0], plain[1], texts, read("scheduler", "scheduler_config.json"))


def words(text: Text) -> Any:
    return tiny.tokenizer("!" if text.open_clip else tiny.END)


def read(path: Path, small: Architecture) -> Components:
    return read_single_file(path, torch.float32, "sdxl", architecture=small, tokenizer=words)


def test_a_file_and_a_folder_give_the_same_components(file: Path, folder: Path, small: Architecture) -> None:
    from_file, from_folder = read(file, small), read_folder(folder, torch.float32, sdxl.TEXTS)
    pairs = [(from_file.unet, from_folder.unet), (from_file.vae, from_folder.vae)]
    pairs += [(ours, theirs) for (_, ours), (_, theirs) in zip(from_file.texts, from_folder.texts, strict=True)]
    assert len(pairs) == 4
    for ours, theirs in pairs:
        one, other = ours.state_dict(), theirs.state_dict()
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_picture_from_a_file_is_the_picture_from_the_folder(
    file: Path, folder: Path, small: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdxl, "read_single_file", lambda path, *_: read(path, small))
    engine = Engine()
    engine.load("file", file, "sdxl")
    engine.load("folder", folder, "sdxl")
    jobs = [job(model=name, seed=7, width=64, height=64, negative_prompt=None) for name in ("file", "folder")]
    drawn = draw(engine, jobs)
    assert torch.equal(drawn[0, 0], drawn[1, 0])


def test_every_parameter_comes_from_the_file(file: Path, small: Architecture, tmp_path: Path) -> None:
    state = load_file(file)
    for missing in (
        "model.diffusion_model.label_emb.0.2.bias",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        "conditioner.embedders.1.model.ln_final.weight",
        "conditioner.embedders.1.model.text_projection",
    ):
        path = tmp_path / "part.safetensors"
        save_file({name: tensor for name, tensor in state.items() if name != missing}, path)
        with pytest.raises(EngineError, match="lacks ") as caught:
            read(path, small)
        assert caught.value.code == "load_failed"


def test_what_published_files_hold_beside_is_no_hindrance(file: Path, small: Architecture, tmp_path: Path) -> None:
    """Training's leftovers, tables of positions, the marks of v-prediction; all of it in half precision."""
    path = tmp_path / "published.safetensors"
    beside = {
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "betas": torch.zeros(10),
        "model_ema.decay": torch.zeros(1),
        "v_pred": torch.zeros(0),
        "ztsnr": torch.zeros(0),
    }
    save_file({name: tensor.half() for name, tensor in load_file(file).items()} | beside, path)
    found = read(path, small)
    assert (found.scheduler["prediction_type"], found.scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert {module.dtype for module in (found.unet, found.vae, *(text for _, text in found.texts))} == {torch.float32}


def test_a_file_without_its_second_encoder_says_so(file: Path, small: Architecture, tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "embedders.1" not in name}, path)
    with pytest.raises(EngineError, match=r"has no text encoder \(conditioner\.embedders\.1\.…\)"):
        read(path, small)


def test_plain_fp8_is_cast_up_and_scaled_weights_are_refused(file: Path, small: Architecture, tmp_path: Path) -> None:
    state = load_file(file)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    path = tmp_path / "eight.safetensors"
    save_file({**state, name: state[name].to(torch.float8_e4m3fn)}, path)
    weight = read(path, small).unet.conv_in.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state[name].to(torch.float8_e4m3fn).float())
    save_file({**state, f"{name[:-7]}.scale_weight": torch.ones(1)}, path)
    with pytest.raises(EngineError, match="fewer bits"):
        read(path, small)


def test_a_file_of_another_family_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    from streamapp.engine.families import Device

    with pytest.raises(EngineError, match="no Stable Diffusion XL U-Net"):
        sdxl.read(path, Device(), {})
