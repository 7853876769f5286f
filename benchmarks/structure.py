"""The package in figures: how many rooms it has, how they depend on each other, and how far a reader has to go.

    python benchmarks/structure.py [CHECKOUT ...]     a table with a column for each checkout (default: this one)

A room is a file or a folder directly under positron_mini/. An arrow is a room that imports another one, anywhere in its code.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = "positron_mini"
FOUR = ("model.py", "trainer.py", "generate.py", "optim.py")
RECORD_KEYS = {"identity", "versions", "events", "started"}  # of run.json, that are keys of nothing else


def sources(root: Path) -> dict[str, Path]:
    """The modules by dotted name below the package."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a tree imports, with the packages they lie in."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        for name in names:
            below = name.removeprefix(PACKAGE).lstrip(".")
            if name.startswith(PACKAGE) and below in modules:
                yield below


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """The modules that `start` imports, directly or through others, itself among them."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            packages = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
            todo += list(graph.get(name, set()) | packages)
    return seen


def lines(paths: Iterable[Path]) -> int:
    """The lines of some files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def comment_share(path: Path) -> float:
    """Comments per 100 lines."""
    text = path.read_text(encoding="utf-8")
    comments = sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(text).readline))
    return 100 * comments / len(text.splitlines())


def figures(root: Path) -> dict[str, str]:
    """The rows of the table for one checkout."""
    modules = sources(root)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules.items()}
    graph = {name: set(imports(tree, modules)) - {name, ""} for name, tree in trees.items()}
    rooms = {name.split(".")[0] for name in modules if name}
    arrows = {(a.split(".")[0], b.split(".")[0]) for a, found in graph.items() for b in found}
    functions = [
        (len(f.args.posonlyargs + f.args.args + f.args.kwonlyargs), f"{name}.{f.name}")
        for name, tree in trees.items()
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    picked = [
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if not name.startswith(("store.run_record", "storyworld", "corpus.storyworld"))  # a story has events too
        and (
            (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value in RECORD_KEYS)
            or (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "get"
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and node.args[0].value in RECORD_KEYS
            )
        )
    ]
    commands = (root / "docs" / "commands.md").read_text(encoding="utf-8")
    close = reached("cli.train", graph)
    longest = max(functions)
    folders = [path for path in modules.values() if path.name == "__init__.py" and path.parent.parent == root / PACKAGE]
    shares = [comment_share(root / PACKAGE / name) for name in FOUR]
    return {
        "files at the package's root": str(len(list((root / PACKAGE).glob("*.py")))),
        "folders": str(len(folders)),
        "lines of the package (.py)": f"{lines(modules.values()):,}",
        "lines of the tests": f"{lines((root / 'tests').rglob('*.py')):,}",
        "modules": str(len(modules)),
        "modules that `cli/train.py` reaches": str(len(close)),
        "lines that it reaches": f"{lines(modules[name] for name in close):,}",
        "arrows between rooms": str(len([1 for a, b in arrows if a != b and b])),
        "rooms": str(len(rooms)),
        "keys of run.json picked outside the record": str(len(picked)),
        "comments per 100 lines: model, trainer, generate, optim": ", ".join(f"{share:.1f}" for share in shares),
        "longest parameter list": f"{longest[0]} (`{longest[1]}`)",
        "commands, flags": f"{commands.count(chr(10) + '## ')}, {len(re.findall(r'^  (?:-., )?--[a-z_]+', commands, re.M))}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).resolve().parent.parent])
    columns = [figures(root) for root in parser.parse_args().checkouts]
    print("| what |" + "".join(" before | now |" if len(columns) == 2 else " now |" * len(columns)))
    print("|---|" + "---|" * len(columns))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")


if __name__ == "__main__":
    main()
