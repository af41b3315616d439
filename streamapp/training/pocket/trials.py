"""The prompts that a model is judged by, the same for every model and every time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from streamapp.training.pocket.data import Data
from streamapp.training.pocket.pictures import GROUNDS, HUES
from streamapp.training.pocket.scenes import seen

GUIDANCE, STEPS = 3.0, 20
#: Prompts of each kind but the first.
EACH = 48
_PASTED = (
    "{}, masterpiece, best quality, highly detailed, 8k, sharp focus, trending on artstation, octane render, "
    "cinematic lighting, intricate, award winning, volumetric lighting, kodak portra, bokeh, hyperdetailed, "
    "beautiful composition, by a famous artist, unreal engine, photorealistic, depth of field, rule of thirds"
)


@dataclass(frozen=True)
class Trial:
    """One picture to draw.

    Attributes:
        concepts: what it shall show.
        colour, ground: that it shall have; None where the prompt says nothing.
    """

    kind: str
    prompt: str
    concepts: tuple[int, ...]
    seed: int
    colour: str | None = None
    ground: str | None = None


def trials(known: Data, seed: int) -> list[Trial]:
    """All of them: each word twice, and the other kinds."""
    made = [
        Trial("word", f"{_article(concept.words[0])}", (number,), draw)
        for number, concept in enumerate(known.concepts)
        for draw in (1, 2)
    ]
    return made + list(_others(known, seed))


def _others(known: Data, seed: int) -> Iterator[Trial]:
    chance = random.Random(f"{seed} trials")
    looks = seen(len(known.concepts), seed)
    many = range(len(known.concepts))
    for number in chance.sample(many, EACH):
        name = known.concepts[number].words[0]
        colour = chance.choice(looks[number].colours)
        yield Trial("colour", f"a {colour} {name}", (number,), 3, colour)
        held = chance.choice([each for each in HUES if each not in looks[number].colours])
        yield Trial("held-out colour", f"a {held} {name}", (number,), 4, held)
        ground = chance.choice([each for each in GROUNDS if each != "white" and each not in looks[number].grounds])
        yield Trial("held-out ground", f"{_article(name)} on a {ground} background", (number,), 5, None, ground)
        both = chance.choice([each for each in GROUNDS if each not in {"white", held}])
        yield Trial("held-out both", f"a {held} {name} on a {both} background", (number,), 6, held, both)
        yield Trial("long prompt", _PASTED.format(_article(name)), (number,), 7)
        other = chance.choice([each for each in many if each != number])
        pair = f"{_article(name)} and {_article(known.concepts[other].words[0])}"
        yield Trial("two things", pair, (number, other), 8)
    for language in ("zh", "de", "fr", "es"):
        for number in chance.sample(many, EACH // 2):
            names = dict(known.concepts[number].others)
            if language in names:
                yield Trial(f"language {language}", names[language], (number,), 9)


def _article(name: str) -> str:
    if name.endswith("s") and not name.endswith("ss"):
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
