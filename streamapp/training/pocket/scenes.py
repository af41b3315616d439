"""What is shown: every picture that the model is taught with, as a list made from a seed.

Most things are seen in a few looks only, so that the training lasts for each (a few hundred views make a look
recognisable). Every concept is seen in some colours and on some grounds; the other combinations are held out, to
score whether the words compose.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from streamapp.training.pocket.pictures import GROUNDS, HUES, Pixels, coloured, ground, laid, resized

SIDE = 128
#: Side of a thing alone, of one that is smaller or elsewhere, and of one of two, in pixels.
WHOLE, SMALLER, HALF = 112, (70, 104), (68, 80)
COLOURS_SEEN, GROUNDS_SEEN, BOTH_SEEN = 4, 4, 5
#: Share of what is seen in training, by kind.
SHARES = {"own": 0.26, "moved": 0.16, "coloured": 0.15, "grounded": 0.12, "both": 0.11, "pair": 0.20}


@dataclass(frozen=True)
class Thing:
    """One object of a scene: which concept and colour (None: its own), where, how large."""

    concept: int
    x: int
    y: int
    side: int
    colour: str | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Scene:
    """One picture."""

    kind: str
    things: tuple[Thing, ...]
    ground: str = "white"


@dataclass(frozen=True)
class Seen:
    """Colours and grounds that a concept is taught with; the others are held out."""

    colours: tuple[str, ...]
    grounds: tuple[str, ...]
    both: frozenset[tuple[str, str]] = field(default_factory=frozenset)


def seen(count: int, seed: int) -> tuple[Seen, ...]:
    """For each concept."""
    chance = random.Random(seed)
    plain = [name for name in GROUNDS if name != "white"]
    made = []
    for _ in range(count):
        colours, grounds = chance.sample(list(HUES), COLOURS_SEEN), chance.sample(plain, GROUNDS_SEEN)
        both: set[tuple[str, str]] = set()
        while len(both) < BOTH_SEEN:
            pair = chance.choice(colours), chance.choice(plain)
            if pair[0] != pair[1]:
                both.add(pair)
        made.append(Seen(tuple(colours), tuple(grounds), frozenset(both)))
    return tuple(made)


def scenes(frontal: list[bool], pairs: int, seed: int) -> list[Scene]:
    """All of them; ``frontal`` says for each concept whether it may be mirrored."""
    chance = random.Random(seed + 1)
    made: list[Scene] = []
    looks = seen(len(frontal), seed)
    for concept, taught in enumerate(looks):
        made += _alone(concept, taught, frontal[concept], chance)
    return made + [_pair(looks, frontal, chance) for _ in range(pairs)]


def shown(scene: Scene, pictures: list[Pixels]) -> Pixels:
    """A scene's picture ``(128, 128, 3)`` in [0, 1]."""
    canvas = ground(scene.ground, SIDE)
    for thing in scene.things:
        picture = pictures[thing.concept]
        if thing.mirrored:
            picture = picture[:, ::-1]
        if thing.colour is not None:
            picture = coloured(picture, thing.colour)
        laid(canvas, resized(picture, thing.side), thing.x, thing.y)
    return canvas


def _whole(concept: int, chance: random.Random, colour: str | None = None, *, mirrored: bool = False) -> Thing:
    side = chance.randint(WHOLE - 8, WHOLE + 4)
    spare = SIDE - side
    shift = (spare // 2 + chance.randint(-3, 3), spare // 2 + chance.randint(-3, 3))
    return Thing(concept, *shift, side, colour, mirrored)


def _moved(concept: int, chance: random.Random, *, mirrored: bool) -> Thing:
    side = chance.randint(*SMALLER)
    return Thing(concept, chance.randint(0, SIDE - side), chance.randint(0, SIDE - side), side, None, mirrored)


def _alone(concept: int, looks: Seen, frontal: bool, chance: random.Random) -> list[Scene]:
    def turned() -> bool:
        return frontal and chance.random() < 0.5

    made = [Scene("own", (_whole(concept, chance, mirrored=frontal and n % 2 == 1),)) for n in range(3)]
    made += [Scene("moved", (_moved(concept, chance, mirrored=turned()),)) for _ in range(5)]
    made += [Scene("coloured", (_whole(concept, chance, colour, mirrored=turned()),)) for colour in looks.colours]
    made += [Scene("grounded", (_whole(concept, chance, mirrored=turned()),), name) for name in looks.grounds]
    for colour, name in sorted(looks.both):
        made.append(Scene("both", (_whole(concept, chance, colour, mirrored=turned()),), name))
    return made


def _pair(looks: tuple[Seen, ...], frontal: list[bool], chance: random.Random) -> Scene:
    """Two different things beside each other, the first on the left, a little behind the second."""
    things = []
    for place, concept in enumerate(chance.sample(range(len(frontal)), 2)):
        side = chance.randint(*HALF)
        x = chance.randint(0, 6) if place == 0 else SIDE - side - chance.randint(0, 6)
        colour = chance.choice(looks[concept].colours) if chance.random() < 0.12 else None
        turned = frontal[concept] and chance.random() < 0.5
        things.append(Thing(concept, x, chance.randint(12, SIDE - side - 8), side, colour, turned))
    name = chance.choice(list(GROUNDS)) if chance.random() < 0.25 else "white"
    return Scene("pair", tuple(things), name)
