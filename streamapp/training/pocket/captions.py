"""What is said about a scene: a new caption at every view."""

from __future__ import annotations

import random
from collections.abc import Sequence

from streamapp.training.pocket.scenes import Scene, Thing
from streamapp.training.pocket.words import Concept, table

#: How often a caption has what, chosen so that plain ones stay common.
SILENT, FOREIGN, TAILED, FILLED, PLACED, ADJECTIVE, OPENED, PLURAL = 0.10, 0.14, 0.33, 0.08, 0.10, 0.15, 0.55, 0.04
_FOREIGN_OPENINGS = {
    "zh": ("", "", "一个", "一只", "可爱的", "一张图片："),
    "de": ("", "", "ein ", "eine ", "süßer "),
    "fr": ("", "", "un ", "une ", "le "),
    "es": ("", "", "un ", "una ", "el "),
}
_FOREIGN_AND = {"zh": "和", "de": " und ", "fr": " et ", "es": " y "}


class Captions:
    """Makes them.

    Args:
        unknown: names that are not taught, for tails.
    """

    def __init__(self, concepts: Sequence[Concept], unknown: Sequence[str]) -> None:
        self._concepts = concepts
        words = table()
        self._openings, self._adjectives = words["openings"], words["adjectives"]
        self._filler, self._places, self._joins = words["filler"], words["places"], words["joins"]
        self._tail = [*self._filler, *self._places, *unknown]

    def of(self, scene: Scene, chance: random.Random, *, long: int = 0) -> str:
        """A caption; ``long`` is how many words of tail it must have at least."""
        if not long and chance.random() < SILENT:
            return ""
        if chance.random() < FOREIGN and scene.ground == "white" and all(t.colour is None for t in scene.things):
            language = chance.choice(["zh", "de", "fr", "es"])
            if all(dict(self._concepts[t.concept].others).get(language) for t in scene.things):
                return self._ended(self._foreign(scene, language, chance), chance, long)
        text = self._joined([self._thing(thing, chance) for thing in scene.things], scene, chance)
        if chance.random() < FILLED:
            text = f"{chance.choice(self._filler)}, {text}"
        if scene.ground != "white" or chance.random() < 0.05:
            text += self._on(scene.ground, chance)
        elif chance.random() < PLACED:
            text += " " + chance.choice(self._places)
        return self._ended(text, chance, long)

    def _thing(self, thing: Thing, chance: random.Random) -> str:
        words = self._concepts[thing.concept].words
        name = words[0] if chance.random() < 0.6 else chance.choice(words)
        before = [chance.choice(self._adjectives)] if chance.random() < ADJECTIVE else []
        if thing.colour is not None:
            before.append(thing.colour)
        if chance.random() < PLURAL and not name.endswith("s"):
            name += "s"
        return " ".join([*before, name])

    def _joined(self, things: list[str], scene: Scene, chance: random.Random) -> str:
        opened = [self._opened(each, chance) if chance.random() < OPENED else each for each in things]
        if len(scene.things) == 1:
            return opened[0]
        join = "and" if chance.random() < 0.6 else chance.choice(self._joins)
        article = "a " if opened[1] == things[1] and chance.random() < 0.6 else ""
        second = things[1] if opened[1] != things[1] else opened[1]
        return f"{opened[0]} {join} {article}{second}" if chance.random() < 0.93 else f"{things[0]}, {things[1]}"

    def _opened(self, text: str, chance: random.Random) -> str:
        opening = "a" if chance.random() < 0.5 else chance.choice(self._openings)
        if opening.endswith("a") and opening.split()[-1] == "a" and text[0] in "aeiou" and chance.random() < 0.7:
            opening += "n"
        return f"{opening} {text}"

    def _on(self, ground: str, chance: random.Random) -> str:
        form = chance.choice(
            [" on a {} background", " on {} background", ", {} background", " with a {} background", " in front of {}"]
        )
        return str(form.format(ground))

    def _foreign(self, scene: Scene, language: str, chance: random.Random) -> str:
        names = [dict(self._concepts[thing.concept].others)[language] for thing in scene.things]
        return _FOREIGN_AND[language].join(chance.choice(_FOREIGN_OPENINGS[language]) + name for name in names)

    def _ended(self, text: str, chance: random.Random, long: int) -> str:
        """With what people paste behind: words that shall change nothing."""
        if not long and chance.random() > TAILED:
            return text
        count = long or chance.randint(1, 8)
        return ", ".join([text, *(chance.choice(self._tail) for _ in range(count))])
