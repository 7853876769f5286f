"""Laws of the programs that this one starts: none of them takes what lies in the current folder for its own code."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from helpers.project import ROOT, dotted, everywhere, sources
from positron_mini import device
from positron_mini.device import children
from positron_mini.doctor import isolate
from positron_mini.doctor.examine import Scope
from positron_mini.doctor.subject import Subject
from positron_mini.text.corpus.reading import ReadStats
from positron_mini.text.corpus.report import Progress
from positron_mini.text.prepare.parts import list_parts
from positron_mini.text.prepare.workers import Job, run

TRAP = "import os\nwith open({hits!r}, 'a') as hits: hits.write(__name__ + ' ')\nraise ImportError('a file of the current folder')\n"
LIBRARIES = {"numpy", "torch", "rich", "tyro", "sentencepiece", "safetensors", "tokenizers", "pyarrow", "prompt_toolkit", "sympy"}


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a file for every module that there is, which writes down that it was imported, to the file `hits` beside it."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in (set(sys.stdlib_module_names) | LIBRARIES) - {"sitecustomize", "usercustomize"}:
        (folder / f"{name}.py").write_text(TRAP.format(hits=str(tmp_path / "hits")))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


def hits(folder: Path) -> str:
    """Modules that were taken from the folder."""
    path = folder.parent / "hits"
    return path.read_text() if path.exists() else ""


def outcome(*command: str) -> tuple[int, str]:
    """The exit code of a program and what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


# --- no other way to start one ----------------------------------------------------------------------------------------------------------

STARTERS = ("subprocess.Popen", "subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output")
COMMANDS = ("children.python", "keep_awake_command")  # what makes a command line that may be started
FORBIDDEN = ("sys.executable", "shutil.which", "multiprocessing.get_context", "multiprocessing.Process", "multiprocessing.Pool", "mp.spawn")
FORBIDDEN_BEGINNINGS = ("os.exec", "os.spawn", "os.posix_spawn", "os.fork", "torch.multiprocessing", "ctypes.util")
FORBIDDEN_NAMES = {"ProcessPoolExecutor", "get_context", "find_library", "which", "executable"}


def unsafe_starts(tree: ast.Module) -> list[str]:
    """Whatever starts a program otherwise than by `children`, or by an absolute path that stands there, as "line: what"."""
    made = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for value in ast.walk(node.value)
        if isinstance(value, ast.Call) and dotted(value.func) in COMMANDS
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in FORBIDDEN or name.startswith(FORBIDDEN_BEGINNINGS):
                found.append(f"{node.lineno}: {name}")
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if names & FORBIDDEN_NAMES or (node.module == "subprocess") or (node.module == "torch" and "multiprocessing" in names):
                found.append(f"{node.lineno}: from {node.module}")
        elif isinstance(node, ast.Call) and dotted(node.func) in STARTERS:
            command = node.args[0] if node.args else None
            is_made = isinstance(command, ast.Name) and command.id in made
            first = command.elts[0] if isinstance(command, ast.List) and command.elts else None
            is_absolute = isinstance(first, ast.Constant) and str(first.value).startswith("/")
            if not (is_made or is_absolute):
                found.append(f"{node.lineno}: {dotted(node.func)}")
    return found


def test_X1_no_module_starts_a_program_but_by_the_one_that_does_it_safely() -> None:
    assert not everywhere(unsafe_starts, "device.children", "cli.spelling")
    only_says_how = ast.dump(sources()["cli.spelling"])  # this program is started, and starts nothing itself
    assert "subprocess" not in only_says_how and "multiprocessing" not in only_says_how
    assert unsafe_starts(sources()["device.children"])


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run([sys.executable, '-m', 'x'])", "subprocess.Popen(['g++', 'x'])", "subprocess.run(command)", "os.execv('x', [])",
        "multiprocessing.get_context('spawn')", "from concurrent.futures import ProcessPoolExecutor", "from subprocess import run",
        "shutil.which('g++')", "os.posix_spawn('x', [], {})", "from sys import executable", "import torch\ntorch.multiprocessing.spawn(f)",
    ],
)  # fmt: skip
def test_another_way_to_start_a_program_is_found(line: str) -> None:
    assert unsafe_starts(ast.parse(line))


@pytest.mark.parametrize(
    "line", ["subprocess.run(['/usr/bin/x'])", "command = children.python('x')\nsubprocess.Popen(command)", "sys.argv", "os.getpid()"]
)
def test_a_safe_start_is_left_alone(line: str) -> None:
    assert not unsafe_starts(ast.parse(line))


def test_X1_several_processes_are_started_as_a_command_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun would write `python -u -m`, which looks into the current folder."""
    from positron_mini.cli import launch

    given: list[list[str]] = []
    monkeypatch.setattr("torch.distributed.run.main", given.append)
    assert launch.launch(["train", "--seed", "1"], 2) == 0
    (words,) = given
    start = words.index("--no-python") + 1
    python, *rest = children.python("positron_mini", "train", "--seed", "1")
    assert words[start:] == [python, "-u", *rest] and "-P" in rest and "-m" not in words


# --- what runs in a folder of traps -----------------------------------------------------------------------------------------------------


def test_the_traps_would_be_run_by_a_python_that_looks_there(trapped: Path) -> None:
    code, said = outcome(sys.executable, "-c", "import queue")
    assert code != 0 and hits(trapped) == "queue " and "a file of the current folder" in said


def test_X1_a_child_runs_nothing_of_the_current_folder(trapped: Path) -> None:
    code, said = outcome(*children.python("positron_mini", "info"))
    assert code == 0 and "PicoGPT" in said and hits(trapped) == ""


def test_X1_the_command_and_the_scripts_run_nothing_of_the_current_folder(trapped: Path) -> None:
    command = "import sys; sys.argv[0] = 'positron'; from positron_mini.cli import main; raise SystemExit(main(['info']))"
    script = trapped.parent / "bin" / "positron"  # as pip writes it: its own folder is first on its path
    script.parent.mkdir()
    script.write_text(command)
    for words in ([str(script)], [str(ROOT / "gpt_min.py")]):
        code, said = outcome(sys.executable, *words)
        assert code == 0 and "PicoGPT" in said and hits(trapped) == ""


def test_X1_the_package_run_as_a_module_looks_away_from_the_current_folder(trapped: Path) -> None:
    """But for the few modules that Python itself imports before the package, of which there are others in each release."""
    code = "import runpy, sys; print(*sys.modules)"
    for name in subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split():
        (trapped / f"{name}.py").unlink(missing_ok=True)
    assert (trapped / "queue.py").exists() and (trapped / "numpy.py").exists() and (trapped / "torch.py").exists()
    code_of, said = outcome(sys.executable, "-m", "positron_mini", "info")
    assert code_of == 0 and "PicoGPT" in said and hits(trapped) == ""


def test_X1_workers_that_prepare_a_text_run_nothing_of_the_current_folder(trapped: Path) -> None:
    text = trapped / "stories.txt"
    text.write_text("A cat sat.\n<|endoftext|>\nA dog ran.\n<|endoftext|>\n" * 20)
    job = Job("scan", trapped.parent)
    run(job, dict(enumerate(list_parts(text, ReadStats())[0])), 1, Progress(lambda _: None, "reading", 1), apart=True)
    result = job.result(0)
    assert result is not None and result["source_bytes"] == text.stat().st_size and hits(trapped) == ""


def end_at_once(connection: Connection, *_: object) -> None:
    """What a process of the doctor does, if it does nothing."""
    import queue

    connection.send(os.path.dirname(queue.__file__))


def test_X1_a_process_of_the_doctor_runs_nothing_of_the_current_folder(trapped: Path) -> None:
    before = dict(os.environ)
    isolate.examine_apart(Subject("cpu", "fp32"), device.this_machine(), Scope(), lambda _: None, work=end_at_once, patience_s=120)
    assert hits(trapped) == "" and dict(os.environ) == before


def test_X1_libraries_that_start_python_run_nothing_of_the_current_folder(trapped: Path) -> None:
    """Those of multiprocessing, for one, which keeps a process of its own for what is shared."""
    program = trapped.parent / "program.py"
    program.write_text(
        "import multiprocessing, sys\nfrom positron_mini.cli import main\n"
        "if __name__ == '__main__':\n    main(['info'])\n    multiprocessing.set_start_method('spawn')\n"
        "    lock = multiprocessing.Lock()\n    process = multiprocessing.Process(target=print, args=('it runs',))\n"
        "    process.start()\n    process.join()\n    sys.exit(process.exitcode)\n"
    )
    code, said = outcome(sys.executable, str(program))
    assert code == 0 and "it runs" in said and hits(trapped) == ""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no processes")
def test_X1_several_processes_run_nothing_of_the_current_folder(trapped: Path) -> None:
    """They find each other, and fail because there is no text: with a sentence of the run, not of a trap."""
    words = ["train", "--nproc", "2", "--dataset_path", "gone.txt", "--threads", "1", "--device", "cpu"]
    code, said = outcome(*children.python("positron_mini", *words))
    assert code == 1 and "gone.txt: no such file or folder" in said and hits(trapped) == "", said


# --- where programs are looked for ------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], Path]:
    """Makes a program in a folder; the current folder is another one, and CXX names nothing."""
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path / "texts")
    monkeypatch.delenv("CXX", raising=False)

    def plant(folder: Path, name: str) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path

    return plant


@pytest.mark.parametrize("path", [".:{bin}", ":{bin}", "{bin}:", "tools:{bin}", "./tools:.:{bin}", "..:{bin}"])
def test_X1_no_compiler_is_found_by_way_of_the_current_folder(
    path: str, planted: Callable[[Path, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (Path.cwd(), Path.cwd() / "tools", tmp_path):
        planted(folder, "g++")
    right = planted(tmp_path / "bin", "g++")
    monkeypatch.setenv("PATH", path.format(bin=tmp_path / "bin"))
    assert device.compiler() == right


def test_a_compiler_that_the_user_names_by_its_place_is_taken(
    planted: Callable[[Path, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = planted(Path.cwd() / "mine", "cc-9")
    monkeypatch.setenv("CXX", "mine/cc-9")
    assert device.compiler() == named
    monkeypatch.setenv("CXX", "cc-9")
    monkeypatch.setenv("PATH", str(Path.cwd() / "mine"))
    assert device.compiler() == named


def test_X1_a_compiler_finds_its_own_tools_not_those_of_the_current_folder(
    planted: Callable[[Path, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f".:{tmp_path / 'bin'}:/usr/bin:/bin")
    planted(Path.cwd(), "as")
    (tmp_path / "scratch").mkdir()
    code, said = children.finish(["sh", "-c", "echo $PATH; pwd; command -v as || true"], tmp_path / "scratch", 60)
    shown = said.splitlines()
    assert code == 0 and shown[0] == f"{tmp_path / 'bin'}:/usr/bin:/bin"
    assert Path(shown[1]).samefile(tmp_path / "scratch") and not any(str(Path.cwd()) in line for line in shown[2:])


def test_a_search_path_that_was_set_on_purpose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert children.safe_settings({"PATH": "/a:/b c", "PYTHONPATH": "x"}) == {"PYTHONSAFEPATH": "1", "PATH": "/a:/b c"}
    assert children.safe_settings({"PATH": ".:"})["PATH"] == os.defpath


def test_the_runner_of_modules_leaves_words_as_they_are(tmp_path: Path) -> None:
    code, said = outcome(*children.python("positron_mini", "no such command", "--x=a b"))
    assert code == 2 and "unknown command 'no such command'" in said
    assert runpy.run_module("positron_mini", run_name="not main")["__name__"] == "not main"
