"""What the pocket model is taught: pictures, scenes, captions."""

from __future__ import annotations

import colorsys
import random
from pathlib import Path

import numpy as np
import pytest

from streamapp.training.pocket import data, packages
from streamapp.training.pocket.pictures import GROUNDS, HUES, coloured, draw, ground, laid, symmetric
from streamapp.training.pocket.scenes import SIDE, scenes, seen, shown
from streamapp.training.pocket.words import unknown_names
from streamapp.training.pocket.work import Work
from tests.training.conftest import ICONS, TAUGHT


def svg(name: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">{ICONS[name]}</svg>'


def test_a_package_that_is_not_the_pinned_one_is_refused(work: Work) -> None:
    wrong = packages.Package("test-icons", "1.0.0", "sha512-AAAA", "MIT")
    with pytest.raises(RuntimeError, match="as it was pinned"):
        packages.fetch(wrong, work.path("packages"))


def test_a_picture_is_cut_to_its_ink() -> None:
    picture = draw(svg("ball"), 64)
    assert picture.shape == (64, 64, 4)
    assert picture[32, 0, 3] > 0.5  # the circle reaches the edge now, though it did not in the file
    assert picture[0, 0, 3] == 0
    assert picture[..., :3].max() <= picture[..., 3].max()


@pytest.mark.parametrize("colour", ["green", "blue", "purple"])
def test_a_colour_word_turns_the_main_hue(colour: str) -> None:
    picture = coloured(draw(svg("ball"), 64), colour)
    red, green, blue = (float(part) for part in picture[32, 32, :3])
    assert abs(colorsys.rgb_to_hsv(red, green, blue)[0] * 360 - HUES[colour]) < 20


def test_side_views_are_told_from_frontal_ones() -> None:
    assert symmetric(draw(svg("ball"), 64))
    assert not symmetric(draw(svg("flag"), 64))


def test_what_sticks_out_of_a_picture_is_cut() -> None:
    canvas = ground("white", 32)
    laid(canvas, draw(svg("ball"), 32), 20, -16)
    assert np.allclose(canvas[20, 10], 1)
    assert canvas[4, 30, 1] < 0.5


def test_scenes_are_the_same_for_a_seed_and_keep_held_out_looks_out() -> None:
    made = scenes([True, False, True], pairs=20, seed=5)
    assert made == scenes([True, False, True], pairs=20, seed=5)
    assert made != scenes([True, False, True], pairs=20, seed=6)
    looks = seen(3, 5)
    for scene in made:
        for thing in scene.things:
            assert not (thing.mirrored and thing.concept == 1)
            assert 0 <= thing.x <= SIDE - thing.side
            assert 0 <= thing.y <= SIDE - thing.side
            assert thing.colour is None or thing.colour in looks[thing.concept].colours
        if scene.kind == "both":
            (thing,) = scene.things
            assert (thing.colour, scene.ground) in looks[thing.concept].both
    assert all(len(set(HUES) - set(look.colours)) == 3 for look in looks)
    assert {scene.ground for scene in made} <= set(GROUNDS)


def test_captions_name_what_is_shown(work: Work) -> None:
    known = data.load(work)
    chance = random.Random(0)
    said = 0
    for scene in known.scenes:
        text = known.captions.of(scene, chance)
        names = [known.concepts[thing.concept] for thing in scene.things]
        spoken = [{*concept.words, *(name for _, name in concept.others)} for concept in names]
        if not text:
            continue
        said += 1
        assert all(any(word in text for word in words) for words in spoken), text
        assert scene.ground == "white" or scene.ground in text
        assert all(thing.colour is None or thing.colour in text for thing in scene.things)
    assert said > 0.7 * len(known.scenes)


def test_tails_never_name_what_is_taught(work: Work) -> None:
    names = work.path("packages") / "test-names-1.0.0.tgz"
    assert unknown_names(names) == ("moon",)
    assert not set(TAUGHT) & set(unknown_names(names))


def test_a_scene_shows_its_ground_and_its_thing(work: Work, tmp_path: Path) -> None:
    del tmp_path
    known = data.load(work)
    scene = next(scene for scene in known.scenes if scene.kind == "grounded" and scene.things[0].concept == 0)
    picture = shown(scene, known.pictures)
    assert picture.shape == (SIDE, SIDE, 3)
    assert np.allclose(picture[0, 0] * 255, GROUNDS[scene.ground], atol=1)
    assert not np.allclose(picture[SIDE // 2, SIDE // 2], picture[0, 0], atol=0.05)
