"""What samples share, and what they must not: encodings, ticks, rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamapp.engine import LoRA
from streamapp.engine.clip import ClipEncoder
from tests.engine.references import Load
from tests.engine.test_exact import draw, job
from tests.engine.test_lora_files import factors

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts that the encoder was given since."""
    seen: list[str] = []
    encode: Any = ClipEncoder.encode

    def watched(self: Any, texts: Any, *given: Any) -> Any:
        seen.extend(texts)
        return encode(self, texts, *given)

    monkeypatch.setattr(ClipEncoder, "encode", watched)
    return seen


def test_a_hundred_images_share_one_encoding(sd15: tuple[Any, Path], load: Load, encoded: list[str]) -> None:
    """And all are drawn, each another one."""
    engine = load(sd15[1], "sd15")
    drawn = draw(engine, [job(num_images=100, num_inference_steps=2, prompt="frog", negative_prompt="dull", seed=9)])
    assert sorted(encoded) == ["dull", "frog"]
    assert sorted(index for _, index in drawn) == list(range(100))
    assert len({latent.numpy().tobytes() for latent in drawn.values()}) == 100


def test_at_most_one_model_is_encoded_for_between_two_ticks(
    sd15: tuple[Any, Path], load: Load, encoded: list[str]
) -> None:
    """So a burst of new prompts holds a running batch up by one encode batch at a time."""
    engine = load(sd15[1], "sd15")
    engine.load("n", sd15[1], "sd15")
    for prompt, model in (("frog", "m"), ("fox", "n"), ("pear", "m")):
        engine.submit(job(prompt=prompt, model=model, guidance_scale=1.0))
    seen = []
    for _ in range(3):
        before = len(encoded)
        engine.step()
        seen.append(encoded[before:])
    assert seen == [["frog"], ["fox"], ["pear"]]
    list(engine.run())


def test_neighbours_change_no_bit_at_equal_rows(sd15: tuple[Any, Path], load: Load, tmp_path: Path) -> None:
    """Other prompts, guidance, samplers, steps under way and LoRAs of the same rank beside it."""
    from safetensors.torch import save_file

    save_file(factors(sd15[0].unet, "unet"), tmp_path / "ink.safetensors")
    engine = load(sd15[1], "sd15")
    engine.load_lora("ink", tmp_path / "ink.safetensors", model="m")
    wanted = job(seed=31, prompt="apple", loras=[LoRA("ink")], sampler="DPM++ 2M")
    results, rows = [], []
    for number, (sampler, weight, scale) in enumerate((("Euler a", 0.4, 3.0), ("Heun", -1.0, 9.0), ("DDIM", 2.0, 1.5))):
        values: dict[str, Any] = {"sampler": sampler, "guidance_scale": scale, "num_inference_steps": 9}
        beside = [job(seed=number, prompt=each, loras=[LoRA("ink", weight)], **values) for each in ("frog", "pear")]
        before = len(engine.stats()["ticks"])
        results.append(draw(engine, [beside[0], wanted, beside[1]], stagger=1)[1, 0])
        rows.append([tick["rows"] for tick in engine.stats()["ticks"][before : before + 7]])
    # Every tick of it: one neighbour is there before it, both outlast it.
    assert rows == [[2, 4, 6, 6, 6, 6, 6]] * 3
    assert all(torch.equal(result, results[0]) for result in results[1:])
