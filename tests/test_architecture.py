"""The rules of the design that a machine can check; each failure says which rule and where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source import ROOT, TOP, Module, modules, ours, part_of

#: A part imports its own layer and those before it, never a later one.
LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "foundation",
        frozenset(["addresses", "errors", "settings", "telemetry", "clock", "generation", "guarded", "ids", "records"]),
    ),
    (
        "parts",
        frozenset(
            [
                "broker",
                "client",
                "db",
                "engine",
                "infotext",
                "models",
                "postprocess",
                "recipe",
                "retry",
                "scheduling",
                "storage",
                "topics",
            ]
        ),
    ),
    (
        "application",
        frozenset(
            [
                *("app", "arrivals", "callbacks", "dead", "outbox", "read_models", "reconciler", "retention"),
                *("run", "runtime", "sending", "submit", "worker"),
            ]
        ),
    ),
    ("tables", frozenset({"tables"})),
    ("agents and web", frozenset({"agents", "web"})),
    ("entry points", frozenset(["__main__", "cli", "demo", "doctor", "training"])),
)
RANK = {part: rank for rank, (_, parts) in enumerate(LAYERS) for part in parts}

#: What a package must never import, and why.
FORBIDDEN: dict[str, tuple[frozenset[str], str]] = {
    "engine": (
        frozenset(["faust", "mode", "aiokafka", "aiohttp", "sqlalchemy", "aiomysql", "aiosqlite", "aiobotocore"]),
        "the engine knows neither Faust, HTTP nor SQL",
    ),
    "agents": (frozenset(["torch", "diffusers", "transformers", "web"]), "agents draw nothing and know no views"),
    "tables": (frozenset(["torch", "diffusers", "transformers"]), "tables are read models"),
    "web": (frozenset(["torch", "diffusers", "transformers", "agents"]), "views draw nothing and know no agents"),
    "records": (frozenset({"faust", "torch"}), "records are read by every part, Faust or not"),
}

#: Longer than the design allows, each with its reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "tests/integration/test_fleet.py::test_the_fleet_draws_grows_shrinks_and_survives_a_kill": (
        "one story on one fleet: starting four processes with torch takes most of its time"
    ),
}
FILE_LINES, FUNCTION_LINES = 300, 50

VAGUE = re.compile(r"(^|_)(utils?|helpers?|common|misc|managers?)(_|$)")
#: Folders that exist on one person's machine only.
OWN_PATHS = re.compile(r"(?<![\w.:/])/(?:home|Users|root|work|workspace)/[\w.-]+")


def test_every_module_has_a_place_in_a_layer() -> None:
    homeless = sorted({module.part for module in ours()} - RANK.keys())
    assert homeless == [], "say in LAYERS of this test which layer these belong to"


def test_left_never_imports_right() -> None:
    wrong = [
        f"{module.where} ({LAYERS[RANK[module.part]][0]}) imports {name} ({LAYERS[RANK[part_of(name)]][0]})"
        for module in ours()
        for name in module.imports()
        if name.partition(".")[0] in TOP and module.part in RANK and RANK.get(part_of(name), -1) > RANK[module.part]
    ]
    assert wrong == []


@pytest.mark.parametrize("part", FORBIDDEN)
def test_forbidden_imports(part: str) -> None:
    names, reason = FORBIDDEN[part]
    wrong = [
        f"{module.where} imports {name}"
        for module in ours()
        if module.part == part
        for name in module.imports(typing=True)
        if name.partition(".")[0] in names
    ]
    assert wrong == [], reason


def test_the_engine_imports_the_foundation_only() -> None:
    allowed = LAYERS[0][1] | {"engine", ""}
    wrong = [
        f"{module.where} imports {name}"
        for module in ours("streamapp/engine")
        for name in module.imports(typing=True)
        if name.partition(".")[0] in TOP and part_of(name) not in allowed
    ]
    assert wrong == []


def test_parts_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for module in ours():
        targets = {part_of(name) for name in module.imports() if name.partition(".")[0] in TOP}
        graph.setdefault(module.part, set()).update(targets & RANK.keys() - {module.part})
    while leaves := [part for part, targets in graph.items() if not targets & graph.keys()]:
        for part in leaves:
            del graph[part]
    assert {part: sorted(targets & graph.keys()) for part, targets in graph.items()} == {}


def test_agents_tables_and_web_import_without_torch() -> None:
    """Also not through something they import: a web process must start fast and fit a small machine."""
    names = [module.name for module in ours("agents", "tables", "web")]
    names += ["streamapp.app"] * (ROOT / "streamapp/app.py").exists()
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys())\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_package_itself_imports_nothing() -> None:
    assert list(Module(ROOT / "streamapp/__init__.py").imports(typing=True)) == []


def test_top_level_packages_are_ours() -> None:
    """Other distributions own the import names ``tables``, ``agents`` and ``web``."""
    program = f"import {', '.join(TOP)}\nfor m in ({', '.join(TOP)}): print(m.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [Path(line) for line in done.stdout.split()] == [ROOT / top / "__init__.py" for top in TOP]


def table_names() -> list[str]:
    """Modules of ``tables``, each of which declares one table."""
    return [module.name for module in ours("tables") if module.name != "tables"]


@pytest.mark.parametrize("table", table_names())
def test_each_table_has_exactly_one_writer_agent(table: str) -> None:
    """A writer makes values, so it imports the table's record; nobody else has a reason to."""
    writers = [module.name for module in ours("agents") if table in module.imports()]
    assert len(writers) == 1, f"{table} must be written by exactly one agent module"
    others = [module.where for module in ours("streamapp", "web") if table in module.imports()]
    assert others == [], f"{table} is read through app.read_models, never written, outside its agent"


def test_only_agents_write_tables() -> None:
    mutating = {"pop", "popitem", "update", "clear", "setdefault", "__setitem__", "__delitem__"}
    wrong = []
    for module in ours("streamapp", "web"):
        for node in ast.walk(module.tree):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign | ast.Delete):
                targets = [target.value for target in node.targets if isinstance(target, ast.Subscript)]
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
                targets = [node.target.value]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in mutating:
                targets = [node.func.value]
            wrong += [f"{module.where}:{target.lineno}" for target in targets if "read_models." in ast.unparse(target)]
    assert wrong == []


def test_files_stay_readable() -> None:
    lengths = {
        module.where: len(module.path.read_text(encoding="utf-8").splitlines())
        for module in modules(*TOP, "tests", "benchmarks")
    }
    long = {where: lines for where, lines in lengths.items() if lines > FILE_LINES}
    assert {where: lines for where, lines in long.items() if where not in LONG_FILES} == {}, "split it by meaning"
    assert LONG_FILES.keys() - long.keys() == set(), "no longer long: take it off the list"


def test_functions_stay_readable() -> None:
    long = {
        f"{module.where}::{node.name}": length
        for module in modules(*TOP, "tests", "benchmarks")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    }
    assert {where: lines for where, lines in long.items() if where not in LONG_FUNCTIONS} == {}, (
        "one stage, one function"
    )
    assert LONG_FUNCTIONS.keys() - long.keys() == set(), "no longer long: take it off the list"


def test_names_say_what_a_module_is() -> None:
    names = [module.where for module in modules(*TOP, "tests", "benchmarks") if VAGUE.search(module.path.stem)]
    classes = [
        f"{module.where}::{node.name}"
        for module in modules(*TOP)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and "Manager" in node.name
    ]
    assert names + classes == []


def test_no_path_of_one_machine() -> None:
    kept = {".py", ".cfg", ".toml", ".md", ".yaml", ".yml", ".sh", ".html", ".js", ".css", ".json", ""}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name and Path(name).suffix in kept]
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {found[0]}"
        for path in paths
        if path.is_file() and path.stat().st_size < 1_000_000 and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if (found := OWN_PATHS.search(line))
    ]
    assert wrong == []


def test_every_test_file_has_tests() -> None:
    """A test file whose functions are misnamed collects nothing and passes for ever."""
    empty = [
        module.where
        for module in modules("tests")
        if module.path.name.startswith("test_")
        and not any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
            for node in ast.walk(module.tree)
        )
    ]
    assert empty == []
