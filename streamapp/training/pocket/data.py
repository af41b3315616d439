"""Stage "data": icons as pixels, and the list of scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from streamapp.training.pocket.captions import Captions
from streamapp.training.pocket.packages import ICONS, NAMES, fetch, read
from streamapp.training.pocket.pictures import KEPT, Pixels, draw, svg_of, symmetric
from streamapp.training.pocket.scenes import Scene, scenes
from streamapp.training.pocket.words import Concept, concepts, unknown_names
from streamapp.training.pocket.work import Work

#: Scenes with two things, and further icons that only the VAE sees.
PAIRS, OTHERS = 5000, 700


@dataclass(frozen=True)
class Data:
    """What the model is taught with.

    Attributes:
        pictures: one a concept, ``(192, 192, 4)``.
        others: further icons, for the VAE.
        scenes: what is shown.
        captions: what is said.
    """

    concepts: tuple[Concept, ...]
    pictures: list[Pixels]
    others: list[Pixels]
    scenes: list[Scene]
    captions: Captions


def prepare(work: Work) -> None:
    """Fetch the packages and draw the icons, unless that is done."""
    if work.path("pictures.npz").exists():
        return
    packages = work.path("packages")
    icons, names = read(fetch(ICONS, packages), "icons.json"), fetch(NAMES, packages)
    taught = [each.icon for each in concepts(names)]
    known = set(taught)
    others = [
        name for name in sorted(icons["icons"]) if name not in known and "skin-tone" not in name and "flag" not in name
    ]
    others = [others[n] for n in np.linspace(0, len(others) - 1, OTHERS).astype(int)]
    drawn = {
        kind: np.stack([_bytes(draw(svg_of(icons, name))) for name in tqdm(group, desc=kind)])
        for kind, group in (("taught", taught), ("others", others))
    }

    def save(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, taught=drawn["taught"], others=drawn["others"])

    work.write("pictures.npz", save)
    work.note(concepts=len(taught), icons=f"{ICONS.name} {ICONS.version}", names=f"{NAMES.name} {NAMES.version}")


def load(work: Work) -> Data:
    """What :func:`prepare` made."""
    names = fetch(NAMES, work.path("packages"))
    taught = concepts(names)
    with np.load(work.path("pictures.npz")) as kept:
        pictures, others = ([_floats(each) for each in kept[kind]] for kind in ("taught", "others"))
    listed = scenes([symmetric(picture) for picture in pictures], PAIRS, work.seed)
    return Data(taught, pictures, others, listed, Captions(taught, unknown_names(names)))


def _bytes(picture: Pixels) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return (picture * 255).round().astype(np.uint8).reshape(KEPT, KEPT, 4)


def _floats(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Pixels:
    return picture.astype(np.float32) / np.float32(255)
