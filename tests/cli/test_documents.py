"""Documents that name files, settings or commands name real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamapp.cli import main
from streamapp.cli.reference import MEANING
from streamapp.settings import Settings

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PLACES = (REPOSITORY, REPOSITORY / "streamapp")


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    dead = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert dead == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_named_python_files_exist(document: Path) -> None:
    named = set(re.findall(r"\b((?:[a-z_]+/)+[a-z_0-9]+\.py)\b", document.read_text()))
    gone = [name for name in sorted(named) if not any((place / name).exists() for place in PLACES)]
    assert gone == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_named_settings_and_commands_exist(document: Path) -> None:
    text = document.read_text()
    settings = {f"STREAMAPP_{name.upper()}" for name in Settings.model_fields} | {
        "STREAMAPP_CONFIG",
        "STREAMAPP_TESTS_STRICT",
    }
    assert set(re.findall(r"STREAMAPP_[A-Z0-9_]*[A-Z0-9]", text)) <= settings
    words = set(re.findall(r"(?:^|`|&& )streamapp ([a-z]+)", text, re.MULTILINE))
    assert words <= set(main.commands)


def test_every_setting_is_explained() -> None:
    explained = [name for section in MEANING.values() for name in section]
    assert sorted(explained) == sorted(Settings.model_fields)
