"""Our own source as the architecture tests see it: files, layers' parts, imports, without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The packages of the product.
TOP = ("streamapp", "agents", "tables", "web")


@dataclass(frozen=True)
class Module:
    """One Python file of the project."""

    path: Path

    @property
    def name(self) -> str:
        """Dotted name."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def part(self) -> str:
        """The package or module directly below ``streamapp``, or the top-level package itself."""
        return part_of(self.name)

    @property
    def where(self) -> str:
        """Path below the root, as messages and exceptions name it."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return parsed(self.path)

    def imports(self, *, typing: bool = False) -> Iterator[str]:
        """Dotted names imported anywhere in the file, those for type checking only if ``typing``."""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        stack: list[ast.AST] = [self.tree]
        while stack:
            node = stack.pop()
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                # `from streamapp import topics` imports a module, `from streamapp.topics import x` a name in one.
                yield from (f"{source}.{alias.name}" if source == "streamapp" else source for alias in node.names)
            if typing or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
                stack.extend(ast.iter_child_nodes(node))
            else:
                stack.extend(node.orelse)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def part_of(name: str) -> str:
    """``streamapp.db.tasks`` → ``db``; ``web.tasks`` → ``web``; ``torch.nn`` → ``torch``."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "streamapp" else first


def modules(*folders: str) -> list[Module]:
    """Every Python file below the folders that exist."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [Module(path) for path in found if "__pycache__" not in path.parts]


def ours(*folders: str) -> list[Module]:
    """Product modules below ``folders``, the bare package ``streamapp`` left out."""
    return [module for module in modules(*(folders or TOP)) if module.part]
