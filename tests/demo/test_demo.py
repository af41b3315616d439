"""`make demo` as a new user runs it: the real service, the real model, pictures in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from streamapp.demo import CAPTION, CELL, PROMPTS, Picture, contact_sheet

REPOSITORY = Path(__file__).parents[2]


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamapp.demo", "--out", str(folder / "out"), "--data-dir", str(folder / "data")]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=170, check=False)


@pytest.mark.timeout(180)
def test_the_demo_draws_every_prompt_and_stops_the_service(tmp_path: Path) -> None:
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stderr
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert len(pictures) == len(PROMPTS) + 1
    assert "a-cute-panda.png" in pictures
    assert "sheet.png" in pictures
    assert "Status page: http://127.0.0.1:" in done.stdout
    assert "tiger-in-chinese.png" in pictures
    with Image.open(tmp_path / "out" / "a-rocket-on-a-blue-background.png") as rocket:
        red, green, blue = rocket.convert("RGB").resize((1, 1), box=(2, 2, 12, 12)).getpixel((0, 0))  # type: ignore[misc]
    assert blue > 150
    assert blue > 1.3 * red
    assert blue > green


@pytest.mark.timeout(180)
def test_a_service_that_cannot_start_fails_the_demo_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "data" / "streamapp.db").mkdir(parents=True)
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert "The demo failed: the service ended at start" in done.stderr
    assert "Last lines of" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_sheet_shows_every_picture_with_its_words(tmp_path: Path) -> None:
    colours = ("red", "green", "blue", "yellow")
    pictures = []
    for colour in colours:
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{colour}.png")
        pictures.append(Picture(colour, tmp_path / f"{colour}.png"))
    contact_sheet(pictures, tmp_path / "sheet.png", columns=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * CELL, 2 * (CELL + CAPTION))
        assert sheet.getpixel((CELL // 2, CELL // 2)) == (255, 0, 0)
        assert sheet.getpixel((CELL // 2, CELL + CAPTION + CELL // 2)) == (255, 255, 0)
        caption = sheet.crop((0, CELL, CELL, CELL + CAPTION)).convert("L")
        assert min(caption.tobytes()) < 100
