"""A small world to learn from: three icons, their names in two packages, no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from streamapp.training.pocket import data, packages, words
from streamapp.training.pocket.work import Work

ICONS = {
    "ball": '<circle cx="64" cy="64" r="40" fill="#d02020"/>',
    "flag": '<path d="M20 10h8v108h-8z" fill="#604020"/><path d="M28 14h70v40H28z" fill="#2040d0"/>',
    "leaf": '<ellipse cx="64" cy="64" rx="30" ry="50" fill="#20a030"/>',
    "moon": '<circle cx="64" cy="64" r="50" fill="#f0d040"/>',
}
NAMES = {
    "en": ["ball", "flag", "leaf", "moon"],
    "zh": ["球", "旗", "叶", "月"],
    "de": ["Ball", "Fahne", "Blatt", "Mond"],
    "fr": ["balle", "drapeau", "feuille", "lune"],
    "es": ["pelota", "bandera", "hoja", "luna"],
}
TAUGHT = ("ball", "flag", "leaf")


def pack(path: Path, files: dict[str, Any]) -> str:
    """An npm package's archive with JSON files; its integrity."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            raw = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """A work folder whose packages are there already."""
    folder = tmp_path / "packages"
    folder.mkdir()
    icons = {"icons": {name: {"body": body} for name, body in ICONS.items()}, "width": 128, "height": 128}
    names = {
        f"{language}/data.json": [{"label": label, "hexcode": str(n)} for n, label in enumerate(labels)]
        for language, labels in NAMES.items()
    }
    for module, kind, files in ((data, "ICONS", {"icons.json": icons}), (data, "NAMES", names)):
        package = packages.Package(f"test-{kind.lower()}", "1.0.0", "", "MIT")
        integrity = pack(folder / package.archive, files)
        monkeypatch.setattr(module, kind, packages.Package(package.name, package.version, integrity, "MIT"))
    monkeypatch.setattr(data, "PAIRS", 12)
    monkeypatch.setattr(data, "OTHERS", 1)
    table = words.table()
    taught = [{"emoji": name, "icon": name, "words": [name, f"the {name}"]} for name in TAUGHT]
    monkeypatch.setattr(words, "table", lambda: {**table, "concepts": taught})
    made = Work(tmp_path, seed=3)
    data.prepare(made)
    return made
