"""Laws of the source: imports go downwards, nothing executes what it reads, one file names backends, everything public is documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from helpers.project import PACKAGE, dotted, everywhere, sources

NAME = "positron_mini"

# From the bottom up; a name stands for a module or for a package with all that is in it. A module may import what stands above it here.
RANKS = [
    "",  # the version, and what the package offers, which it imports when it is asked for
    "errors",
    "own_files",
    "files",
    "config",
    "device",
    "storyworld",
    "text",
    "model",
    "fast",
    "generate",
    "optim",
    "store",
    "trainer",
    "distributed",
    "chat",
    "evaluate",
    "export",
    "train",
    "doctor",
    "report",
    "web",
    "cli",
    "__main__",
]
MAX_LINES = 400


# --- reading the source ------------------------------------------------------------------------------------------------------------


def rank_of(module: str) -> int | None:
    """The place of a module in the table, by its own name or its package's."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)] if module else [""]
    return next((RANKS.index(name) for name in names if name in RANKS), None)


def imported(tree: ast.AST, modules: set[str]) -> Iterator[tuple[str, int]]:
    """Modules of the package that `tree` imports anywhere, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            base = node.module or ""
            names = [f"{base}.{a.name}" if f"{base}.{a.name}".removeprefix(NAME + ".") in modules else base for a in node.names]
        else:
            continue
        for name in names:
            if name == NAME or name.startswith(NAME + "."):
                yield name.removeprefix(NAME).removeprefix("."), node.lineno


def upward_imports(module: str, tree: ast.AST, modules: set[str]) -> list[str]:
    own = rank_of(module)
    if own is None:
        return [f"{module} has no place in the table"]
    wrong = []
    for target, line in imported(tree, modules):
        rank = rank_of(target)
        if rank is None or rank > own:
            wrong.append(f"{module}:{line} imports {target}")
    return wrong


UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "torch.hub.load", "torch.serialization.load", "os.system",
    "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load", "yaml.unsafe_load", "runpy.run_path",
}  # fmt: skip
UNSAFE_KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}


def unsafe(tree: ast.AST) -> list[str]:
    """Whatever could run code that came from a file or a shell, as "line: name"."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: {a.name}" for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names]
            found += [f"{node.lineno}: {n}" for n in names if n.split(".")[0] in UNSAFE_MODULES or n in UNSAFE_CALLS]
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load) and dotted(node) in UNSAFE_CALLS:
            found.append(f"{node.lineno}: {dotted(node)}")
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_KEYWORDS and getattr(node.value, "value", True) is not False:
            found.append(f"{node.value.lineno}: {node.arg}")
    return found


def backend_names(tree: ast.AST) -> list[str]:
    """Uses of a backend's own interface."""
    prefixes = ("torch.cuda", "torch.mps", "torch.backends", "torch.xpu", "torch.accelerator")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in prefixes:
            found.append(f"{node.lineno}: {dotted(node)}")
        elif isinstance(node, ast.Import):
            found += [f"{node.lineno}: {a.name}" for a in node.names if a.name.startswith(prefixes)]
        elif isinstance(node, ast.ImportFrom) and f"{node.module}.{node.names[0].name}".startswith(prefixes):
            found.append(f"{node.lineno}: {node.module}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            found.append(f"{node.lineno}: .cuda()")
    return found


def prints(tree: ast.AST) -> list[str]:
    """Uses of `print`."""
    return [str(node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "print"]


def undocumented(tree: ast.Module) -> list[str]:
    """The module itself, and public functions, classes and methods, that lack a docstring."""
    found = [] if not tree.body or ast.get_docstring(tree) else ["the module"]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    found.append(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")

    visit(tree.body, "")
    return found


# --- laws --------------------------------------------------------------------------------------------------------------------------


def test_imports_go_downwards_only() -> None:
    modules = set(sources())
    assert not [wrong for name, tree in sources().items() if name for wrong in upward_imports(name, tree, modules)]


def test_the_table_names_nothing_that_is_not_there() -> None:
    assert len(RANKS) == len(set(RANKS)) and not set(RANKS) - set(sources())


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("model", "from positron_mini.trainer import Trainer"),
        ("model", "def f():\n    from positron_mini import trainer"),
        ("errors", "import positron_mini.config"),
        ("text.tokenizer.spm", "from positron_mini.train import plan"),
        ("brand_new", "import json"),
    ],
)
def test_an_upward_import_and_a_module_without_a_place_are_found(module: str, line: str) -> None:
    assert upward_imports(module, ast.parse(line), set(sources()))


def test_no_package_imports_itself_in_a_circle() -> None:
    modules = set(sources())
    graph = {name: {target for target, _ in imported(tree, modules)} - {name, ""} for name, tree in sources().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_model_needs_torch_and_the_settings_only() -> None:
    allowed = {"model": {"torch", f"{NAME}.config"}, "optim": {"torch", "math", "dataclasses", "typing"}}
    for module, wanted in allowed.items():
        tree = sources()[module]
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {name if name.startswith(NAME) else name.split(".")[0] for name in found} - {"__future__"} <= wanted


def at_import(module: str, seen: set[str]) -> set[str]:
    """Foreign top-level packages that importing `module` imports, through the package's own modules too."""
    if module in seen or module not in sources():
        return set()
    seen.add(module)
    body = [node for node in sources()[module].body if isinstance(node, ast.Import | ast.ImportFrom)]
    tree = ast.Module(body=list(body), type_ignores=[])
    found = {alias.name.split(".")[0] for node in body if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module.split(".")[0] for node in body if isinstance(node, ast.ImportFrom) and node.module}
    for target, _ in imported(tree, set(sources())):
        parts = target.split(".")
        for name in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
            found |= at_import(name, seen)
    return found - {NAME}


@pytest.mark.parametrize("module", ["cli", "errors", "files", "config", "device", "store.checkpoint", "text.tokenizer"])
def test_heavy_libraries_are_not_imported_where_they_can_wait(module: str) -> None:
    heavy = {"torch", "pyarrow", "matplotlib", "transformers", "huggingface_hub"}
    if module == "cli":
        heavy |= {"numpy", "rich", "tyro", "sentencepiece", "tokenizers", "safetensors"}
    assert not at_import(module, set()) & heavy


def test_L1_nothing_executes_what_it_reads() -> None:
    assert not everywhere(unsafe)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load(f)", "from torch import load", "eval('1')", "exec(x)",
        "f = eval", "import subprocess\nsubprocess.run('ls', shell=True)", "subprocess.run(x, shell=flag)", "m(x, trust_remote_code=True)",
        "np.load(f, allow_pickle=True)", "import os\nos.system('ls')", "__import__('os')",
    ],
)  # fmt: skip
def test_code_that_executes_what_it_reads_is_found(line: str) -> None:
    assert unsafe(ast.parse(line))


@pytest.mark.parametrize("line", ["model.eval()", "re.compile('a')", "torch.compile(f)", "np.load(f, allow_pickle=False)", "x = 'eval(1)'"])
def test_harmless_code_is_left_alone(line: str) -> None:
    assert not unsafe(ast.parse(line))


def test_only_the_device_module_names_a_backend() -> None:
    assert not everywhere(backend_names, "device")
    assert backend_names(sources()["device.machine"])


@pytest.mark.parametrize(
    "line", ["torch.cuda.empty_cache()", "torch.backends.mps.is_available()", "from torch import cuda", "import torch.mps", "x.cuda()"]
)
def test_a_backend_that_is_named_is_found(line: str) -> None:
    assert backend_names(ast.parse(line))


def test_only_the_command_line_and_the_chat_print() -> None:
    assert not everywhere(prints, "cli", "chat.session")
    assert prints(ast.parse("def f():\n    print(1)")) == ["2"]


def test_everything_public_says_what_comes_back() -> None:
    assert not everywhere(undocumented)
    assert undocumented(ast.parse("def f(): pass\nclass A:\n    'x'\n    def g(self): pass\n    def _h(self): pass")) == [
        "the module",
        "f",
        "A.g",
    ]


def test_no_file_is_longer_than_can_be_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
