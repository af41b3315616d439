"""Long and weighted prompts and clip_skip: what is drawn equals embeddings made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamapp.engine import EngineError
from tests.engine import tiny
from tests.engine.references import TOLERANCE, Load, both, reference
from tests.engine.test_exact import draw, error, job

LONG = "a red fox jumps, over the lazy dog"
#: In windows of 15 letters, behind the last comma.
CUT = ["a red fox jumps,", "over the lazy dog"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


def encode(pipeline: Any, cut: list[str], weights: dict[tuple[int, int], float], skip: int = 1) -> torch.Tensor:
    """Windows of words as the pipeline's own encoder sees them, weighted by hand: ``(1, tokens, width)``."""
    rows = []
    for number, words in enumerate(cut):
        ids = pipeline.tokenizer(words, padding="max_length", max_length=tiny.LENGTH, return_tensors="pt").input_ids
        with torch.no_grad():
            states = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states[-skip]
            states = pipeline.text_encoder.text_model.final_layer_norm(states)
        mine = {place: weight for (window, place), weight in weights.items() if window == number}
        if mine:
            weighted = states.clone()
            for place, weight in mine.items():
                weighted[0, place] *= weight
            states = weighted * (states.mean() / weighted.mean())
        rows.append(states[0])
    return torch.cat(rows)[None]


def test_a_long_weighted_prompt_equals_embeddings_made_by_hand(sd15: tuple[Any, Path], load: Load) -> None:
    pipeline, folder = sd15
    engine = load(folder, "sd15")
    wanted = job(prompt="a (cat:1.5) [sat] BREAK on mats", negative_prompt="grey BREAK dull", seed=9)
    # Letters are tokens: begin, a, c a t, s a t; each of cat's letters weighs 1.5, each of sat's 1 / 1.1.
    weights = {(0, place): 1.5 for place in (2, 3, 4)} | {(0, place): 1 / 1.1 for place in (5, 6, 7)}
    embeds = encode(pipeline, ["a cat sat", "on mats"], weights)
    negative = encode(pipeline, ["grey", "dull"], {})
    given = {"prompt": None, "negative_prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative}
    expected = reference(pipeline, wanted, **given)
    for drawn in both(engine, wanted):
        assert error(drawn, expected) <= TOLERANCE
    plain = draw(engine, [job(prompt="a cat sat BREAK on mats", negative_prompt="grey BREAK dull", seed=9)])[0, 0]
    assert error(plain, expected) > 1e-3


def test_windows_of_different_number_share_a_forward(sd15: tuple[Any, Path], load: Load) -> None:
    """The shorter branch is padded and masked: it equals a U-Net that was called with the short text only."""
    pipeline, folder = sd15
    wanted = job(prompt=LONG, negative_prompt="dull", seed=9)
    embeds = encode(pipeline, CUT, {})
    negative = encode(pipeline, ["dull"], {})
    padded = torch.nn.functional.pad(negative, (0, 0, 0, embeds.shape[1] - negative.shape[1]))
    given = {"prompt": None, "negative_prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": padded}
    forward = pipeline.unet.forward

    def one_by_one(sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **others: Any) -> Any:
        short = encoder_hidden_states[:1, : tiny.LENGTH]
        first = forward(sample[:1], timestep, encoder_hidden_states=short, **others)[0]
        second = forward(sample[1:], timestep, encoder_hidden_states=encoder_hidden_states[1:], **others)[0]
        return (torch.cat([first, second]),)

    pipeline.unet.forward = one_by_one
    try:
        expected = reference(pipeline, wanted, **given)
    finally:
        pipeline.unet.forward = forward
    for drawn in both(load(folder, "sd15"), wanted):
        assert error(drawn, expected) <= TOLERANCE
    assert error(reference(pipeline, wanted, **given), expected) > 1e-3


def test_clip_skip_counts_as_a1111_does_and_holds_for_both_prompts(sd15: tuple[Any, Path], load: Load) -> None:
    pipeline, folder = sd15
    engine = load(folder, "sd15")
    wanted = job(prompt="cat", negative_prompt="dull", seed=9, clip_skip=2)
    given = {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": encode(pipeline, ["cat"], {}, 2),
        "negative_prompt_embeds": encode(pipeline, ["dull"], {}, 2),
    }
    expected = reference(pipeline, wanted, **given)
    assert error(draw(engine, [wanted])[0, 0], expected) <= TOLERANCE
    assert error(draw(engine, [job(prompt="cat", negative_prompt="dull", seed=9)])[0, 0], expected) > 1e-3
    with pytest.raises(EngineError, match="clip_skip is 4, this checkpoint's text encoder takes 1 to 3"):
        engine.submit(job(clip_skip=4))


def test_clip_skip_2_is_what_sdxl_was_trained_with(sdxl: tuple[Any, Path], load: Load) -> None:
    pipeline, folder = sdxl
    engine = load(folder, "sdxl")
    drawn = draw(engine, [job(seed=1, clip_skip=skip, negative_prompt="dull") for skip in (1, 2, 3)])
    assert error(drawn[1, 0], drawn[0, 0]) <= TOLERANCE
    encoded = pipeline.encode_prompt("a red apple", clip_skip=1, negative_prompt="dull")
    other = pipeline.encode_prompt("dull", clip_skip=1)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    given = dict(zip(names, (encoded[0], other[0], encoded[2], encoded[3]), strict=True))
    expected = reference(pipeline, job(seed=1), prompt=None, negative_prompt=None, **given)
    assert error(drawn[2, 0], expected) <= TOLERANCE


def test_a_prompt_longer_than_is_drawn_is_refused_before_the_job_runs(sd15: tuple[Any, Path], load: Load) -> None:
    engine = load(sd15[1], "sd15")
    with pytest.raises(EngineError, match="in 65 windows of 15; at most 64") as caught:
        engine.submit(job(prompt="abc " * 321))
    assert caught.value.code == "invalid_job"
    assert engine.idle
