"""The wheel: what is in it, and that it answers in an environment where nothing else is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import positron_mini
from helpers.project import PACKAGE, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy: setuptools leaves build folders beside what it builds."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, source / "positron_mini", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(target), str(source))
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that holds the wheel and nothing else, not even pip."""
    folder = tmp_path_factory.mktemp("an empty environment")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    pip("--python", str(folder), "install", "--no-deps", "--no-index", str(wheel))
    return folder / "bin"


def pip(*arguments: str) -> None:
    """Runs pip, and fails with what it said."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run(command: Path, *arguments: str) -> str:
    """What an installed command prints; it must succeed, without Python's own settings and away from this folder."""
    settings = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False, cwd=command.parent, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def metadata(wheel: Path) -> Message:
    """The core metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    files = [path for path in PACKAGE.rglob("[!.]*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {str(path.relative_to(ROOT)) for path in files}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == wanted, "a data file is missing: name its ending under [tool.setuptools.package-data]"
    assert "positron_mini/py.typed" in held


def test_the_wheel_names_version_licence_and_oldest_python(wheel: Path) -> None:
    fields = metadata(wheel)
    assert (fields["Name"], fields["Version"]) == ("positron-mini", positron_mini.__version__)
    assert (fields["License-Expression"], fields["Requires-Python"]) == ("MIT", ">=3.11")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")] != []


def test_the_program_answers_with_the_standard_library_alone(empty_environment: Path) -> None:
    assert run(empty_environment / "positron", "--version").split()[-1] == positron_mini.__version__
    assert "positron COMMAND" in run(empty_environment / "positron", "--help")


def test_installed_data_files_are_found_through_the_package(empty_environment: Path) -> None:
    program = 'from importlib.resources import files; print(sorted(p.name for p in files("positron_mini").iterdir() if p.is_file()))'
    listed = run(empty_environment / "python", "-I", "-c", program)
    assert "'py.typed'" in listed
    assert "'__init__.py'" in listed


def test_every_dependency_has_exactly_one_pin_without_build_suffix() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(name for extra in ("web", "export", "dev") for name in extras[extra]), "tensorboard"]
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pins = [normal(line.split("==")[0]) for line in lines]
    assert {normal(re.split(r"[\[<>=!~; ]", name, maxsplit=1)[0]) for name in named} - set(pins) == set()
    assert sorted(set(pins)) == sorted(pins)
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line)] == []


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
