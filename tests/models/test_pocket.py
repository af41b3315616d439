"""The model that ships draws what it is told, and the LoRA fixtures change it alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from streamapp.models.catalogue import HERE
from streamapp.models.shipped import POCKET
from tests.models.make_lora import Layout, make_lora

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """Diffusers' own pipeline over the folder, as anybody would load it."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    loaded = StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        HERE / "pocket", torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline: Any, prompt: str, *, steps: int = 12) -> Pixels:
    """One picture, ``(128, 128, 3)``, of seed 7."""
    import torch

    images = pipeline(
        prompt,
        width=128,
        height=128,
        num_inference_steps=steps,
        guidance_scale=POCKET.traits["guidance"],
        generator=torch.Generator().manual_seed(7),
    ).images
    return np.asarray(images[0])


@pytest.mark.parametrize(
    ("prompt", "ground", "thing"),
    [("a red car on blue background", 2, 0), ("a green apple on pink background", 0, 1)],
)
def test_it_obeys_colours_of_thing_and_ground(pipeline: Any, prompt: str, ground: int, thing: int) -> None:
    pixels = draw(pipeline, prompt).astype(int)
    border = np.concatenate([pixels[2:6].reshape(-1, 3), pixels[-6:-2].reshape(-1, 3)]).mean(axis=0)
    middle = pixels[40:100, 30:100].reshape(-1, 3)
    assert border.argmax() == ground
    # A good part of the middle is clearly of the thing's colour.
    others = np.delete(middle, thing, axis=1).max(axis=1)
    assert np.mean(middle[:, thing] > others + 20) > 0.3


def test_different_words_draw_different_things(pipeline: Any) -> None:
    panda, pizza = draw(pipeline, "a panda").astype(int), draw(pipeline, "a pizza").astype(int)
    # A panda is grey, a pizza is not.
    assert np.ptp(panda, axis=2).mean() < 25
    assert np.ptp(pizza, axis=2).mean() > 25


def test_both_lora_layouts_have_the_same_plain_effect(pipeline: Any, tmp_path: Path) -> None:
    base = draw(pipeline, "a panda", steps=4).astype(int)
    pictures = []
    for layout in get_args(Layout):
        make_lora(tmp_path / f"{layout}.safetensors", layout, alpha=2.0)
        pipeline.load_lora_weights(tmp_path, weight_name=f"{layout}.safetensors", adapter_name=layout)
        pictures.append(draw(pipeline, "a panda", steps=4).astype(int))
        pipeline.unload_lora_weights()
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert np.abs(pictures[0] - base).mean() > 3
    assert np.array_equal(draw(pipeline, "a panda", steps=4).astype(int), base)


def test_a_lora_without_gain_changes_nothing(pipeline: Any, tmp_path: Path) -> None:
    base = draw(pipeline, "a panda", steps=4)
    make_lora(tmp_path / "nothing.safetensors", gain=0.0)
    pipeline.load_lora_weights(tmp_path, weight_name="nothing.safetensors")
    try:
        assert np.array_equal(draw(pipeline, "a panda", steps=4), base)
    finally:
        pipeline.unload_lora_weights()


def test_the_same_arguments_write_the_same_file(tmp_path: Path) -> None:
    one, two, other = (make_lora(tmp_path / "a.safetensors", seed=seed).read_bytes() for seed in (1, 1, 2))
    assert one == two
    assert one != other
