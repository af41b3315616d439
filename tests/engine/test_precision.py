"""In which types weights are loaded, and what a device draws at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamapp.engine import Engine, EngineError, Job
from streamapp.engine.admission import GIB, Admission
from streamapp.engine.families import Device, vae_type
from streamapp.engine.memory import ByteLedger, host_used
from streamapp.engine.precision import precise
from tests.engine import tiny
from tests.engine.test_engine import job

CUDA = Device("cuda:0", "auto")


@pytest.mark.parametrize(
    ("family", "denoiser", "vae"),
    [
        ("sd15", "float16", "float32"),
        (None, "float16", "float32"),
        ("sdxl", "float16", "float32"),
        ("sd3", "bfloat16", "bfloat16"),
        ("flux", "bfloat16", "bfloat16"),
        ("qwen_image", "bfloat16", "bfloat16"),
    ],
)
def test_each_family_has_its_types_on_a_device_and_float32_on_a_cpu(family: str, denoiser: str, vae: str) -> None:
    """float16 overflows in the blocks and T5 of those that were made in bfloat16."""
    device, notes = precise(CUDA, family, used=0.5, strict=False)
    assert (device.dtype, device.vae, notes) == (denoiser, vae, ())
    host, _ = precise(Device("cpu", "auto"), family, used=0.9, strict=False)
    assert (host.dtype, host.vae) == ("float32", "float32")


def test_types_that_are_named_are_taken_whatever_the_memory() -> None:
    """Who names them knows why."""
    named = Device("cuda:0", "float32")
    assert precise(named, "flux", used=0.99, strict=True) == (named, ())


def test_above_nine_tenths_the_next_load_takes_less_and_says_so() -> None:
    """Or refuses, where it must not; where there is nothing less it loads as ever."""
    device, (note,) = precise(Device("cpu", "auto"), "sd15", used=0.91, strict=False)
    assert (device.dtype, device.vae) == ("bfloat16", "bfloat16")
    assert "bfloat16" in note
    device, (note,) = precise(CUDA, "sdxl", used=0.91, strict=False)
    assert (device.dtype, device.vae) == ("float16", "bfloat16")
    with pytest.raises(EngineError) as caught:
        precise(CUDA, "sdxl", used=0.91, strict=True)
    assert (caught.value.code, caught.value.retryable) == ("memory_pressure", True)
    assert precise(CUDA, "flux", used=0.99, strict=True)[0].dtype == "bfloat16"


def test_pictures_of_a_load_under_pressure_say_so(tmp_path: Path) -> None:
    """In their precision and notes; what is loaded already stays as it is, the next load has its own types again."""
    tiny.sd(tmp_path)
    ledger = ByteLedger(limit=100)
    engine = Engine(dtype="auto", options={"ledger": ledger})

    def drawn() -> dict[str, Any]:
        engine.submit(job(prompt="a", num_inference_steps=2))
        (info,) = [event.value.info for event in engine.run() if event.kind == "image"]
        found: dict[str, Any] = info
        return found

    with ledger.taken(95):
        engine.load("m", tmp_path, "sd15")
        pressed = drawn()
    assert (pressed["precision"], len(pressed["notes"])) == ("bfloat16", 1)
    engine.load("m", tmp_path, "sd15")
    assert drawn()["precision"] == "bfloat16"
    engine.unload("m")
    engine.load("m", tmp_path, "sd15")
    whole = drawn()
    assert (whole["precision"], whole["notes"]) == ("float32", ())
    strict = Engine(dtype="auto", strict_precision=True, options={"ledger": ledger})
    with ledger.taken(95), pytest.raises(EngineError, match="strict_precision"):
        strict.load("m", tmp_path, "sd15")


@pytest.mark.parametrize(("asks", "expected"), [(True, torch.float32), (False, torch.float16)])
def test_a_vae_that_stands_half_precision_has_it_on_a_device(asks: bool, expected: torch.dtype) -> None:
    """The repaired VAE of SDXL says so in its configuration; on a CPU all are in float32."""
    vae = tiny.vae()
    vae.register_to_config(force_upcast=asks)
    assert vae_type(vae, Device("cpu", "float16")).dtype == torch.float32
    assert vae_type(vae, Device("cuda:0", "float16")).dtype == expected


@pytest.mark.parametrize(
    ("gigabytes", "family", "side", "field"),
    [
        (4, "sd15", 512, None),
        (4, "sd15", 768, "width"),
        (4, "sdxl", 512, "model"),
        (8, "sd15", 1024, None),
        (8, "sd15", 1536, "width"),
        (8, "flux", 512, "model"),
        (16, "sd15", 2048, None),
        (16, "sdxl", 2048, None),
        (None, "sdxl", 2048, None),
    ],
)
def test_a_device_draws_what_the_table_says(gigabytes: int | None, family: str, side: int, field: str | None) -> None:
    """A device of nominal 8 GB has a little less."""
    admission = Admission(None if gigabytes is None else int(gigabytes * GIB * 0.93))
    wanted = Job("m", width=side, height=side)
    if field is None:
        admission.check(wanted, family, 2)
        return
    with pytest.raises(EngineError) as caught:
        admission.check(wanted, family, 2)
    assert (caught.value.code, caught.value.details["field"]) == ("does_not_fit", field)


def test_what_was_measured_counts_instead_of_the_table() -> None:
    """Both ways, by model, and until the model is unloaded."""
    admission, large = Admission(8 * GIB), Job("m", width=1536, height=1536)
    small = Job("m", width=512, height=512)
    admission.learn(small, 2, 2 * GIB)
    with pytest.raises(EngineError, match="1024x1024"):
        admission.check(large, "sd15", 2)
    admission.learn(small, 4, 2 * GIB + GIB // 4)
    admission.check(large, "sd15", 2)
    with pytest.raises(EngineError):
        admission.check(Job("other", width=1536, height=1536), "sd15", 2)
    admission.forget("m")
    admission.learn(small, 2, 2 * GIB)
    admission.learn(small, 4, 5 * GIB)
    with pytest.raises(EngineError, match=r"1024x1024 pixels do not fit .* at most 832x832"):
        admission.check(Job("m", width=1024, height=1024), "sd15", 2)
    admission.check(small, "sd15", 2)


def test_an_engine_refuses_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other value that cannot be drawn."""
    monkeypatch.setattr(ByteLedger, "size", lambda _: 4 * GIB)
    engine = Engine(options={"ledger": ByteLedger(limit=4 * GIB)})
    engine.load("m", "somewhere", "fake")
    with pytest.raises(EngineError) as caught:
        engine.submit(job(width=1024, height=1024))
    assert (caught.value.code, engine.idle) == ("does_not_fit", True)
    engine.submit(job())
    assert [event.kind for event in engine.run()][-1] == "image"


def test_a_containers_memory_is_its_own(tmp_path: Path) -> None:
    """Without files that can be dropped; the host's where no limit is set; nothing where nobody tells."""
    assert host_used(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n")
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for name, content in {"max": "max", "current": "500", "stat": "file 200\ninactive_file 100\n"}.items():
        (group / f"memory.{name}").write_text(content)
    assert host_used(tmp_path) == pytest.approx(0.6)
    (group / "memory.max").write_text("1000")
    assert host_used(tmp_path) == pytest.approx(0.4)
