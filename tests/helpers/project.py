"""The files of the project: where they are, what the source of the package says, and scripts loaded as modules."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "positron_mini"
PROGRAMS = Path(__file__).parent / "programs"  # what tests start as processes of their own


def script_module(path: str) -> ModuleType:
    """The script at `path` from the root of the project, as a module; it is loaded, not run."""
    name = f"script_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@cache
def sources() -> dict[str, ast.Module]:
    """The syntax tree of every module, by dotted name below the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def everywhere(check: Callable[[ast.Module], list[str]], *exempt: str) -> list[str]:
    """What `check` finds in all modules but the exempt ones and what is in them."""
    free = tuple(f"{name}." for name in exempt)
    return [f"{name} {what}" for name, tree in sources().items() if not f"{name}.".startswith(free) for what in check(tree)]


def dotted(node: ast.AST) -> str:
    """`a.b.c` for an attribute chain or a name, else empty."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text in the source, docstrings too; what is put into one stands as X."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value
