"""Stage "report": draws the trials with the model that ships and with the new one, and says which is better."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from streamapp.engine import Engine, Job
from streamapp.training.pocket import classifier, data, measures
from streamapp.training.pocket.trials import GUIDANCE, STEPS, Trial, trials
from streamapp.training.pocket.work import Work

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "pocket"
#: A word counts as drawn when the wanted class is among the first so many.
NEAR = 5
THUMB, COLUMNS = 96, 16


def report(work: Work) -> Path:
    """Write ``report/``: ``scores.json``, ``report.md`` and a grid of pictures for each kind; its folder."""
    known = data.load(work)
    wanted = trials(known, work.seed)
    net = classifier.load(work, len(known.concepts))
    folder = work.path("report")
    folder.mkdir(exist_ok=True)
    scores = {}
    for name, model in (("shipped", SHIPPED), ("new", work.path("model"))):
        began = time.monotonic()
        pictures = drawn(model, wanted, name)
        scores[name] = judged(known, net, wanted, pictures)
        scores[name]["seconds_each"] = round((time.monotonic() - began) / len(wanted), 3)
        _grids(folder, name, wanted, pictures)
    (folder / "scores.json").write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(table(scores), encoding="utf-8")
    return folder


def drawn(model: Path, wanted: Sequence[Trial], name: str) -> list[Image.Image]:
    """The pictures, by the service's own engine."""
    engine = Engine(max_batch_rows=32, threads=torch.get_num_threads())
    engine.load("model", model)
    form = Job("model", width=128, height=128, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    for place, trial in enumerate(wanted):
        engine.submit(replace(form, prompt=trial.prompt, seed=trial.seed), str(place))
    found: dict[int, Image.Image] = {}
    with tqdm(total=len(wanted), desc=name, mininterval=5) as bar:
        for event in engine.run():
            if event.kind == "image":
                found[int(event.job_id)] = event.value
                bar.update()
    engine.close()
    return [found[place] for place in range(len(wanted))]


def judged(known: data.Data, net: Any, wanted: Sequence[Trial], pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """Shares by kind, each word's ranks, and the prompts that were drawn wrong, the worst first."""
    ranks = [
        [classifier.ranks(net, [view], [concept])[0] for concept, view in zip(trial.concepts, views, strict=True)]
        for trial, picture in zip(wanted, pictures, strict=True)
        for views in [_halves(picture) if len(trial.concepts) == 2 else [picture]]
    ]
    kinds: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(trial.kind for trial in wanted):
        rows = [(t, r, p) for t, r, p in zip(wanted, ranks, pictures, strict=True) if t.kind == kind]
        told = {"pictures": float(len(rows)), "top1": _share([max(r) == 0 for _, r, _ in rows])}
        told["top5"] = _share([max(r) < NEAR for _, r, _ in rows])
        colours = [measures.colour_of(p) == t.colour for t, _, p in rows if t.colour]
        grounds = [measures.ground_of(p) == t.ground for t, _, p in rows if t.ground]
        told |= {"colour": _share(colours)} if colours else {}
        told |= {"ground": _share(grounds)} if grounds else {}
        kinds[kind] = told
    words: dict[str, list[int]] = {}
    for trial, found in zip(wanted, ranks, strict=True):
        if trial.kind == "word":
            words.setdefault(known.concepts[trial.concepts[0]].words[0], []).append(found[0])
    some = range(0, len(known.concepts), max(1, len(known.concepts) // 32))
    views = [(t.concepts[0], p) for t, p in zip(wanted, pictures, strict=True) if t.kind == "word"]
    pairs = [[picture for concept, picture in views if concept == number] for number in some]
    differ = sum(measures.spread(pair) for pair in pairs) / len(pairs)
    missed = [[max(found), trial.prompt, trial.seed] for trial, found in zip(wanted, ranks, strict=True) if max(found)]
    scores = {"kinds": kinds, "clear": sorted(clear(words)), "words": words, "seeds_differ": round(differ, 4)}
    return {**scores, "missed": sorted(missed, key=lambda each: -each[0])}


def clear(words: Mapping[str, Sequence[int]]) -> list[str]:
    """Words of which every picture is near, and one is right."""
    return [word for word, found in words.items() if max(found) < NEAR and min(found) == 0]


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores as Markdown."""
    lines = ["# The pocket model, judged", "", "| prompts | model | pictures | top 1 | top 5 | colour | ground |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in next(iter(scores.values()))["kinds"]:
        for name, score in scores.items():
            told = score["kinds"][kind]
            cells = [f"{told[key]:.2f}" if key in told else "" for key in ("top1", "top5", "colour", "ground")]
            lines.append(f"| {kind} | {name} | {told['pictures']:.0f} | {' | '.join(cells)} |")
    for name, score in scores.items():
        facts = f"{len(score['clear'])} of {len(score['words'])} words clear, seeds differ by {score['seeds_differ']}"
        lines += ["", f"{name}: {facts}, {score['seconds_each']} s a picture."]
        dim = [word for word in score["words"] if word not in score["clear"]]
        lines += [f"Not clear: {', '.join(dim) or 'none'}."]
    return "\n".join(lines) + "\n"


def _share(found: Sequence[bool]) -> float:
    return round(sum(found) / len(found), 4)


def _halves(picture: Image.Image) -> list[Image.Image]:
    """Left and right of a picture of two things, each in a square on its own ground."""
    made = []
    for left in (0, 48):
        corner: Any = picture.getpixel((1, 1))
        square = Image.new("RGB", (100, 100), corner)
        square.paste(picture.crop((left, 0, left + 80, 128)).resize((62, 100)), (19, 0))
        made.append(square)
    return made


def _grids(folder: Path, name: str, wanted: Sequence[Trial], pictures: Sequence[Image.Image]) -> None:
    for kind in dict.fromkeys(trial.kind for trial in wanted):
        chosen = [(t, p) for t, p in zip(wanted, pictures, strict=True) if t.kind == kind]
        rows = -(-len(chosen) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * THUMB, rows * (THUMB + 12)), "white")
        pen = ImageDraw.Draw(sheet)
        for place, (trial, picture) in enumerate(chosen):
            x, y = place % COLUMNS * THUMB, place // COLUMNS * (THUMB + 12)
            sheet.paste(picture.resize((THUMB, THUMB)), (x, y))
            if trial.prompt.isascii():
                pen.text((x + 2, y + THUMB), trial.prompt[:18], fill="black")
        sheet.save(folder / f"{kind.replace(' ', '-')}-{name}.png")
