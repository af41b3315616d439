"""Three tiers of weights: what stays, what goes, what is shared, and that every load writes everything."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from streamapp.engine import components, families
from streamapp.engine.engine import Engine
from streamapp.engine.errors import EngineError
from streamapp.engine.families import Device
from streamapp.engine.job import Job, LoRA
from streamapp.engine.tiers import Loaded
from tests.engine import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array__.*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*"),
]
PLENTY = 1 << 30


def other_than(folder: Path, target: Path, *parts: str, seed: int = 5, **config: Any) -> Path:
    """A copy of a checkpoint in which these components were trained on; ``config`` is what the VAE's says instead."""
    shutil.copytree(folder, target)
    torch.manual_seed(seed)
    for part in parts:
        (file,) = (target / part).glob("*.safetensors")
        weights = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in load_file(file).items()}
        file.unlink()
        save_file(weights, file, {"format": "pt"})
    if config:
        place = target / "vae" / "config.json"
        place.write_bytes(orjson.dumps({**orjson.loads(place.read_bytes()), **config}))
    return target


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiers") / "one"
    tiny.sd(folder)
    return folder


@pytest.fixture(scope="module")
def two(one: Path) -> Path:
    return other_than(one, one.with_name("two"), "unet", "vae", "text_encoder", scaling_factor=0.3)


@pytest.fixture(scope="module")
def tuned(one: Path) -> Path:
    """Only its U-Net differs from the first's."""
    return other_than(one, one.with_name("tuned"), "unet", seed=6)


def size(folder: Path, part: str = "") -> int:
    parts = families.read("sd15", folder, Device(), {})
    return sum(components.size(module) for place, module in components.modules(parts) if part in place)


def picture(engine: Engine, model: str, **more: Any) -> torch.Tensor:
    job = Job(model=model, prompt="abc", width=64, height=64, num_inference_steps=3, seed=3, output="latent", **more)
    engine.submit(job)
    (drawn,) = [event.value for event in engine.run() if event.kind == "image"]
    latent: torch.Tensor = torch.as_tensor(drawn if isinstance(drawn, torch.Tensor) else drawn.latent)
    return latent


def pixels(engine: Engine, model: str) -> Any:
    job = Job(model=model, prompt="abc", width=64, height=64, num_inference_steps=3, seed=3, output="rgb")
    engine.submit(job)
    (drawn,) = [event.value for event in engine.run() if event.kind == "image"]
    return drawn.pixels


def test_filling_a_set_anew_writes_every_tensor_and_what_is_no_weight(one: Path, two: Path) -> None:
    target, source = (families.read("sd15", folder, Device(), {}) for folder in (one, two))
    for (place, old), (_, new) in zip(components.modules(target), components.modules(source), strict=True):
        assert components.architecture(old) == components.architecture(new), place
        for tensor in old.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        assert not components.same(old, new)
        components.refill(old, new)
        assert components.same(old, new)
    assert target.vae.config.scaling_factor == 0.3


def test_what_does_not_bring_every_tensor_is_refused_by_name_and_writes_nothing(one: Path, two: Path) -> None:
    target, source = (families.read("sd15", folder, Device(), {}) for folder in (one, two))
    before = target.unet.conv_in.weight.clone()
    source.unet.conv_out.bias = None
    with pytest.raises(EngineError, match=r"U-Net lacks conv_out\.bias"):
        components.refill(target.unet, source.unet, "U-Net")
    assert torch.equal(target.unet.conv_in.weight, before)


def test_another_architecture_is_told_apart(one: Path, tmp_path: Path) -> None:
    tiny.sd(tmp_path / "wide", attention_head_dim=8)
    first, wide = (families.read("sd15", folder, Device(), {}) for folder in (one, tmp_path / "wide"))
    assert components.architecture(first.unet) != components.architecture(wide.unet)
    assert components.architecture(first.vae) == components.architecture(wide.vae)


def test_checkpoints_stay_while_they_fit(one: Path, two: Path) -> None:
    engine = Engine(vram_bytes=PLENTY, ram_bytes=PLENTY)
    assert [engine.load(name, path).evicted for name, path in (("one", one), ("two", two))] == [(), ()]
    again = engine.load("one", one)
    assert (again.tier, again.bytes) == ("vram", 0)
    assert set(engine.stats()["checkpoints"]) == {"one", "two"}


def test_beyond_the_budget_the_next_one_takes_the_modules_of_the_least_recently_used(one: Path, two: Path) -> None:
    alone = Engine()
    alone.load("two", two)
    expected = pixels(alone, "two")
    engine = Engine(vram_bytes=int(1.5 * size(one)), ram_bytes=PLENTY)
    engine.load("one", one)
    first = pixels(engine, "one")
    place = engine._checkpoints["one"]._unet.conv_in.weight.data_ptr()  # type: ignore[attr-defined]
    loaded = engine.load("two", two)
    assert (loaded.evicted, loaded.tier, loaded.bytes) == (("one",), "disk", size(two))
    assert engine._checkpoints["two"]._unet.conv_in.weight.data_ptr() == place  # type: ignore[attr-defined]
    assert pixels(engine, "two") == expected
    back = engine.load("one", one)
    assert (back.evicted, back.tier) == (("two",), "ram")
    assert pixels(engine, "one") == first != expected


def test_nothing_is_written_into_modules_that_are_drawn_with(one: Path, two: Path) -> None:
    engine = Engine(vram_bytes=int(1.5 * size(one)), ram_bytes=PLENTY)
    engine.load("one", one)
    expected = picture(engine, "one")
    job = Job(model="one", prompt="abc", width=64, height=64, num_inference_steps=3, seed=3, output="latent")
    engine.submit(job)
    engine.step()
    with pytest.raises(EngineError) as refused:
        engine.load("two", two)
    assert (refused.value.code, refused.value.retryable) == ("no_room", True)
    (drawn,) = [event.value for event in engine.run() if event.kind == "image"]
    assert torch.equal(torch.as_tensor(drawn if isinstance(drawn, torch.Tensor) else drawn.latent), expected)
    with pytest.raises(EngineError, match="has to wait"):
        engine.load("two", two, keep=["one"])
    assert engine.load("two", two).evicted == ("one",)


def test_one_checkpoint_is_loaded_however_small_the_budgets_are(one: Path, two: Path) -> None:
    roomy, tight = Engine(), Engine(vram_bytes=1, ram_bytes=0)
    for name, path in (("one", one), ("two", two)):
        roomy.load(name, path)
        assert tight.load(name, path).tier == "disk"
        assert pixels(tight, name) == pixels(roomy, name)
    assert set(tight.stats()["checkpoints"]) == {"two"}
    assert tight.stats()["tiers"]["ram"]["bytes"] == 0


def test_components_that_are_the_same_are_there_once(one: Path, two: Path, tuned: Path) -> None:
    engine = Engine(vram_bytes=PLENTY, ram_bytes=PLENTY)
    engine.load("one", one)
    loaded = engine.load("tuned", tuned)
    assert loaded.bytes == size(tuned, "unet")
    whole = size(one) + size(tuned, "unet")
    assert {tier: held["bytes"] for tier, held in engine.stats()["tiers"].items()} == {"vram": whole, "ram": whole}
    expected = pixels(engine, "tuned")
    engine.unload("one")
    assert pixels(engine, "tuned") == expected
    engine.load("two", two)
    assert engine.stats()["tiers"]["vram"]["bytes"] == size(tuned) + size(two)


def test_ram_keeps_what_was_used_last(one: Path, two: Path, tuned: Path) -> None:
    engine = Engine(vram_bytes=1, ram_bytes=int(2.5 * size(one)))
    tiers = [engine.load(path.name, path).tier for path in (one, two, one, tuned, one, two)]
    # Room for the fourth is made before it is read: the second, used longest ago, goes.
    assert tiers == ["disk", "disk", "ram", "disk", "ram", "disk"]
    engine = Engine(vram_bytes=1, ram_bytes=int(1.5 * size(one)))
    assert [engine.load(path.name, path).tier for path in (one, two, one, two)] == ["disk"] * 4


def test_a_file_that_changed_is_read_again(one: Path, two: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(one, place)
    engine = Engine(vram_bytes=PLENTY, ram_bytes=PLENTY)
    engine.load("m", place)
    shutil.rmtree(place)
    shutil.copytree(two, place)
    assert engine.load("m", place).tier == "disk"
    alone = Engine()
    alone.load("m", two)
    assert pixels(engine, "m") == pixels(alone, "m")


def test_what_was_read_ahead_is_taken_from_ram(one: Path, two: Path, tmp_path: Path) -> None:
    engine = Engine(vram_bytes=int(1.5 * size(one)), ram_bytes=PLENTY)
    engine.load("one", one)
    engine.prefetch(two)
    engine.prefetch(tmp_path / "nowhere")  # whoever loads it is told
    engine.tiers.host.settle()
    loaded: Loaded = engine.load("two", two)
    assert loaded.tier == "ram"
    with pytest.raises(EngineError, match="nowhere"):
        engine.load("three", tmp_path / "nowhere")


def test_loras_come_from_ram_the_second_time_and_leave_the_modules_with_their_checkpoint(
    one: Path, two: Path, tmp_path: Path
) -> None:
    engine = Engine(vram_bytes=int(1.5 * size(one)), ram_bytes=PLENTY)
    engine.load("one", one)
    file = lora(engine, "one", tmp_path / "style.safetensors")
    plain = picture(engine, "one")
    engine.load_lora("style", file, "one")
    styled = picture(engine, "one", loras=[LoRA("style", 1.0)])
    assert float((styled - plain).abs().max()) > 1e-3
    held = engine.stats()["tiers"]["ram"]["bytes"]
    assert held == size(one) + sum(tensor.nbytes for tensor in load_file(file).values())
    engine.load("two", two)
    assert not any(module._forward_hooks for module in hooked(engine, "two"))
    engine.load("one", one)
    engine.load_lora("style", file, "one")
    assert torch.equal(picture(engine, "one", loras=[LoRA("style", 1.0)]), styled)
    assert torch.equal(picture(engine, "one"), plain)


def lora(engine: Engine, model: str, target: Path) -> Path:
    """A LoRA of rank 4 for every attention layer of a U-Net."""
    torch.manual_seed(9)
    tensors = {}
    for name, module in engine._checkpoints[model]._unet.named_modules():  # type: ignore[attr-defined]
        if name.endswith(("to_q", "to_v")):
            out, into = module.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(4, into)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(out, 4)
    save_file(tensors, target)
    return target


def hooked(engine: Engine, model: str) -> list[Any]:
    """The modules that LoRAs change."""
    unet = engine._checkpoints[model]._unet  # type: ignore[attr-defined]
    return [module for name, module in unet.named_modules() if name.endswith(("to_q", "to_v"))]


def resident() -> int:
    """Bytes of memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024


def test_two_hundred_switches_leave_no_memory_behind(one: Path, two: Path, tmp_path: Path) -> None:
    engine = Engine(vram_bytes=int(1.5 * size(one)), ram_bytes=PLENTY, decode_queue=0)
    engine.load("one", one)
    file = lora(engine, "one", tmp_path / "style.safetensors")
    after: dict[int, int] = {}
    for switch in range(1, 201):
        name, path = ("one", one) if switch % 2 else ("two", two)
        engine.load(name, path)
        engine.load_lora("style", file, name)
        engine.submit(
            Job(model=name, prompt="a", width=64, height=64, num_inference_steps=1, loras=[LoRA("style", 1.0)])
        )
        assert [event.kind for event in engine.run()][-1] == "image"
        if switch in (10, 200):
            after[switch] = resident()
    assert abs(after[200] / after[10] - 1) <= 0.03
