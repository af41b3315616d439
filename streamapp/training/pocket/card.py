"""Stage "card": what goes along with the weights – the words, the model card with its scores, and whose work it is.

Everything that is said of quality comes from the report's ``scores.json``.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from streamapp.training.pocket import data
from streamapp.training.pocket.data import Data
from streamapp.training.pocket.denoiser import BATCH, REPORT
from streamapp.training.pocket.pictures import GROUNDS, HUES
from streamapp.training.pocket.report import SHIPPED, drawn
from streamapp.training.pocket.scenes import seen
from streamapp.training.pocket.trials import trials
from streamapp.training.pocket.work import Work

#: Pictures of failures on the card, the worst ones.
FAILURES, SIDE = 16, 128
WIDTH = 120
_LANGUAGES = {"zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish"}
_KINDS = {
    "word": "a word alone",
    "colour": "with a colour seen in training",
    "held-out colour": "with a colour never seen on it",
    "held-out ground": "on a ground never seen behind it",
    "held-out both": "colour and ground, neither pair seen",
    "long prompt": "in a pasted prompt of some 70 tokens",
    "two things": "two things, both right",
    **{f"language {code}": f"named in {name}" for code, name in _LANGUAGES.items()},
}


def write(work: Work) -> Path:
    """Write ``words.json``, ``MODEL_CARD.md``, ``NOTICE`` and ``failures.png`` into the folder ``model``."""
    known, folder = data.load(work), work.path("model")
    score = json.loads(work.path("report/scores.json").read_text(encoding="utf-8"))["new"]
    run = json.loads(work.path("run.json").read_text(encoding="utf-8"))
    listed = words(known, score["clear"], work.seed)
    lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in listed)
    (folder / "words.json").write_text(f'{{\n"concepts": [\n{lines}\n]\n}}\n', encoding="utf-8")
    steps, minutes = _spent(work)
    told = card(known, listed, score, {**run, "denoiser": {"steps": steps, "minutes": minutes}})
    (folder / "MODEL_CARD.md").write_text(told, encoding="utf-8")
    (folder / "NOTICE").write_text((SHIPPED / "NOTICE").read_text(encoding="utf-8"), encoding="utf-8")
    _failures(known, score["missed"], work, folder)
    return folder


def words(known: Data, clear: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """The clear concepts with all their names, and what they were seen with."""
    looks = seen(len(known.concepts), seed)
    return [
        {
            "words": list(concept.words),
            "others": dict(concept.others),
            "colours_seen": sorted(look.colours),
            "grounds_seen_alone": sorted(look.grounds),
        }
        for concept, look in zip(known.concepts, looks, strict=True)
        if concept.words[0] in set(clear)
    ]


def card(known: Data, listed: Sequence[Mapping[str, Any]], score: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The model card, as Markdown."""
    names = {each["words"][0] for each in listed}
    dim = [concept.words[0] for concept in known.concepts if concept.words[0] not in names]
    said = _CARD.format(
        count=len(listed),
        taught=len(known.concepts),
        colours=", ".join(HUES),
        grounds=", ".join(GROUNDS),
        table="\n".join(_rows(score["kinds"])),
        differ=f"{score['seeds_differ']:.2f}",
        dim=", ".join(dim) or "none",
        icons=run["icons"],
        labels=run["names"],
        versions=", ".join(f"{name} {number}" for name, number in run["versions"].items()),
        vae=f"{run['vae']['steps']:,}",
        steps=f"{run['denoiser']['steps']:,}",
        minutes=run["denoiser"]["minutes"],
        batch=BATCH,
        seed=run["seed"],
        words=", ".join(" / ".join(each["words"]) for each in listed),
    )
    return "\n\n".join(map(_wrapped, said.rstrip().split("\n\n"))) + "\n"


def _wrapped(block: str) -> str:
    """A paragraph or a list in lines of the width that the documents have; tables and headings stay as they are."""
    if block.startswith(("|", "#", "!")):
        return block
    items = [" ".join(item.split()) for item in f"\n{block}".split("\n- ")]
    if len(items) == 1:
        return textwrap.fill(items[0], WIDTH, break_on_hyphens=False)
    fill = textwrap.TextWrapper(WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(fill.fill(item) for item in items if item)


def _spent(work: Work) -> tuple[int, int]:
    """Steps and minutes of the denoiser, by its log."""
    told = [json.loads(line) for line in work.path("denoiser.jsonl").read_text(encoding="utf-8").splitlines()]
    return told[-1]["step"], round(sum(REPORT * BATCH / each["samples_per_s"] for each in told) / 60)


def _rows(kinds: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = []
    for kind, told in kinds.items():
        cells = [f"{100 * told[key]:.0f} %" if key in told else "" for key in ("top1", "top5", "colour", "ground")]
        rows.append(f"| {_KINDS.get(kind, kind)} | {told['pictures']:.0f} | {' | '.join(cells)} |")
    return rows


def _failures(known: Data, missed: Sequence[tuple[int, str, int]], work: Work, folder: Path) -> None:
    """Pictures that do not show what was asked for, drawn anew."""
    worst = {(prompt, seed) for _, prompt, seed in missed[:FAILURES]}
    chosen = [trial for trial in trials(known, work.seed) if (trial.prompt, trial.seed) in worst]
    sheet = Image.new("RGB", (8 * SIDE, -(-len(chosen) // 8) * (SIDE + 16)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (trial, picture) in enumerate(zip(chosen, drawn(folder, chosen, "failures"), strict=True)):
        x, y = place % 8 * SIDE, place // 8 * (SIDE + 16)
        sheet.paste(picture, (x, y))
        said = trial.prompt if trial.prompt.isascii() else f"{trial.kind}: {known.concepts[trial.concepts[0]].words[0]}"
        pen.text((x + 2, y + SIDE + 1), said[:24], fill="black")
    sheet.quantize(128).save(folder / "failures.png", optimize=True)


_CARD = """\
# Pocket

A small text-to-image model in the exact layout of a Stable Diffusion 1.5 pipeline of diffusers: 5.6 million
parameters, 11 MB in half precision, about 0.3 s a picture on one CPU thread. It is the model that a fresh installation
draws with, and the one that the tests draw with. `make pocket` trains it, `make pocket-report` judges it and writes
this card.

## What it can do

- Draw {count} things at 128x128, in the manner of watercoloured emoji, from English words (below) and their usual
  names in Chinese, German, French and Spanish (`words.json`).
- Obey a colour ({colours}) and a background ("on pink background": {grounds}), also in combinations that it never saw.
- Draw two things side by side ("a cat and a dog"), and find its subject in a long pasted prompt.
- Negative prompts, LoRAs, image to image, inpainting, and all samplers of the engine.

## How well, by numbers

A small classifier, trained on the rendered icons with changes of place, size, colour and light that are not in the
model's data, says which of {taught} things a picture shows; the colour and the ground are told by pixels. Twenty
steps of DDIM at guidance 3. Top 1: the wanted thing comes first (of two things: both do, each in its half); top 5: it
is among five.

| prompt | pictures | top 1 | top 5 | colour | ground |
| --- | ---: | ---: | ---: | ---: | ---: |
{table}

Two seeds of one word differ by {differ} of the range of a pixel, on average. A word is listed as known when every
picture of it (two seeds) is among the first five and one of them comes first. Taught and left out by this bar: {dim}.

## What it cannot do

![pictures that do not show what was asked for](failures.png)

- Above are the worst pictures of the report. Two things often melt where they touch, or one of them takes the other's
  colour; some names in other languages draw something else.
- Two seeds of one word differ in place, size and detail, hardly in what is drawn.
- Nouns that it does not know give a wrong picture. Words for styles and places change nothing.
- Counting ("three dogs"), people, text, photographs.
- Draw larger: from 136 pixels on a side subjects double or melt. Sides of 104 to 128 pixels work; below that subjects
  are cut off. Larger requests are drawn within these sizes and enlarged, and the answer says so.

## How it was made

| part | configuration | parameters |
| --- | --- | --- |
| text encoder | CLIP text model, 96 wide, 2 layers, 4 heads; own byte-pair vocabulary; windows of 32 tokens | 0.56 M |
| U-Net | (64, 96, 96), one layer a block, cross-attention 96 wide, v-prediction | 4.07 M |
| VAE | factor 8, (16, 24, 48, 72), 4 latent channels, scaling factor 1.0 | 0.98 M |

Trained on two CPU cores (seed {seed}) with {versions}: {vae} steps of the VAE, then {steps} steps of {batch} samples
of U-Net and text encoder together, which took {minutes} minutes beside other work.

Data: vector emoji (Noto Emoji, Apache-2.0, by way of {icons}), recoloured and set on plain grounds, with captions made
from the names and tags of emojibase (MIT, {labels}). No photographs, no people's pictures, no scraped data. The weights
are under Apache-2.0; see `NOTICE`.

## The words

{words}.
"""
