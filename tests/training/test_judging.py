"""How models are judged: what pixels say, what the classifier says, the report that puts two side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from streamapp.engine import Engine, Job, LoRA
from streamapp.training.pocket import card, classifier, data, denoiser, measures, report, styles, trials
from streamapp.training.pocket.export import export
from streamapp.training.pocket.pictures import GROUNDS, HUES, coloured, draw, ground, laid
from streamapp.training.pocket.scenes import seen
from streamapp.training.pocket.work import Work
from tests.training.test_data import svg


def on(name: str, colour: str) -> Image.Image:
    canvas = ground(name, 128)
    laid(canvas, coloured(draw(svg("ball"), 96), colour), 16, 16)
    return Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8))


@pytest.mark.parametrize("colour", list(HUES))
def test_pixels_tell_the_colour_and_the_ground(colour: str) -> None:
    for name in GROUNDS:
        assert measures.ground_of(on(name, colour)) == name
    assert measures.colour_of(on("white", colour)) == colour
    assert measures.colour_of(on("black", colour)) == colour


def test_a_picture_without_colour_has_none() -> None:
    assert measures.colour_of(Image.new("RGB", (128, 128), "white")) is None


def test_seeds_that_draw_the_same_do_not_differ() -> None:
    one, other = on("white", "red"), on("white", "blue")
    assert measures.spread([one, one]) == 0
    assert measures.spread([one, other]) > 0.05


def test_held_out_trials_were_never_taught(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "EACH", 3)
    known = data.load(work)
    looks = seen(len(known.concepts), work.seed)
    made = trials.trials(known, work.seed)
    assert made == trials.trials(known, work.seed)
    assert [t.prompt for t in made[:4]] == ["a ball", "a ball", "a flag", "a flag"]
    held = [t for t in made if t.kind.startswith("held-out")]
    assert len(held) == 9
    for trial in held:
        taught = looks[trial.concepts[0]]
        assert trial.colour not in taught.colours
        assert (trial.colour, trial.ground) not in taught.both


def test_a_word_is_clear_when_every_picture_is_near_and_one_is_right() -> None:
    assert report.clear({"cat": [0, 3], "dog": [1, 2], "fish": [0, 9]}) == ["cat"]


def test_two_models_are_drawn_and_judged(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hardly any training: everything runs, nothing is good."""
    from streamapp.training.pocket import latents, parallel, vae, vocabulary

    monkeypatch.setattr(vocabulary, "CAPTIONS", 300)
    monkeypatch.setattr(vocabulary, "MERGES", 200)
    monkeypatch.setattr(trials, "EACH", 2)
    monkeypatch.setattr(report, "STEPS", 2)
    monkeypatch.setattr(report, "COLUMNS", 4)
    vocabulary.learn(work)
    parallel.run(vae.train, 1, work, 1)
    latents.encode(work)
    denoiser.train(0, 1, work, 2)
    model = export(work)
    styles.train(work, steps=2)
    classifier.train(work, steps=4)
    folder = report.report(work)
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores) == {"shipped", "new"}
    assert set(scores["new"]["words"]) == {"ball", "flag", "leaf"}
    assert scores["new"]["kinds"]["word"]["top5"] == 1.0  # there are only three
    assert "| held-out both | new | 2 |" in (folder / "report.md").read_text()
    assert (folder / "word-new.png").exists()
    assert json.loads(work.path("run.json").read_text())["classifier"]["steps"] == 4
    _loras_move_the_picture(model, work.path("styles"))
    _the_card_says_what_the_report_found(work, scores["new"])


def _the_card_says_what_the_report_found(work: Work, score: dict[str, Any]) -> None:
    work.path("denoiser.jsonl").write_text(
        '{"step": 100, "samples_per_s": 10.0}\n{"step": 200, "samples_per_s": 5.0}\n'
    )
    folder = card.write(work)
    listed = json.loads((folder / "words.json").read_text())["concepts"]
    assert [each["words"][0] for each in listed] == [word for word in score["words"] if word in score["clear"]]
    assert all(set(each["others"]) == {"zh", "de", "fr", "es"} for each in listed)
    said = (folder / "MODEL_CARD.md").read_text()
    assert f"Draw {len(listed)} things" in said
    assert "200 steps of 32 samples" in said
    assert "took 16 minutes" in said  # 3,200 samples at 10 a second, then at 5
    assert f"| a word alone | 6 | {100 * score['kinds']['word']['top1']:.0f} % | 100 % |" in said
    assert "Noto Emoji" in (folder / "NOTICE").read_text()
    assert (folder / "failures.png").exists()


def _loras_move_the_picture(model: Path, folder: Path) -> None:
    engine = Engine(max_batch_rows=4)
    engine.load("m", model)
    for name in styles.STYLES:
        assert (folder / f"{name}.safetensors").stat().st_size < 300_000
        engine.load_lora(name, folder / f"{name}.safetensors", model="m")
    for loras in ((), (LoRA("ink", 1.0), LoRA("duotone", 0.5))):
        form = Job("m", "a ball", width=128, height=128, num_inference_steps=2, output="latent", loras=loras)
        engine.submit(form, str(len(loras)))
    plain, styled = (event.value for event in engine.run() if event.kind == "image")
    engine.close()
    assert not torch.equal(torch.as_tensor(plain), torch.as_tensor(styled))


def test_styles_change_every_picture() -> None:
    picture = on("white", "red")
    looks = [np.asarray(style(picture)) for style in styles.STYLES.values()]
    assert all(look.shape == (128, 128, 3) for look in looks)
    assert all(np.abs(look.astype(int) - np.asarray(picture)).mean() > 5 for look in looks)
    assert np.abs(looks[0].astype(int) - looks[1]).mean() > 20
