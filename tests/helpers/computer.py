"""A play-acted computer for setup.sh: made-up interpreters, and a made-up pip inside real virtual environments."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from helpers.project import ROOT

TOOLS = ("bash", "sh", "cat", "cut", "dirname", "env", "grep", "mkdir", "mv", "rm", "sed", "sort", "tail", "tr", "sha256sum", "shasum")
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
THIS_MACHINE = platform.machine()

FAKE_PIP = """
import json, os, sys, time
from pathlib import Path
site, venv, arguments = Path(__file__).parent.parent, Path(sys.prefix), sys.argv[1:]
said = " ".join(arguments)

def distribution(name, version, whole=True):
    (site / name).mkdir(exist_ok=True)
    (site / name / "__init__.py").write_text("")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    if whole:
        (info / "RECORD").write_text(f"{name}/__init__.py,,0\\n")

if arguments == ["--version"]:
    sys.exit(print("pip 1"))
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(arguments) + "\\n")
failing = os.environ.get("FAKE_FAIL", "nothing")
if failing in said:
    print("noise\\n" * 99 + os.environ.get("FAKE_MESSAGE", "ERROR: it went wrong"))
    sys.exit(1)
hanging = os.environ.get("FAKE_HANG", "nothing")
if hanging in said:
    distribution("torch", "2.13.0", whole=False)
    Path(os.environ["FAKE_LOG"] + ".hangs").touch()
    time.sleep(60)
if "torch==" in said:
    if "--no-index" in arguments and not os.environ.get("FAKE_LOCAL_TORCH"):
        sys.exit("ERROR: No matching distribution found for torch")
    distribution("torch", "2.13.0+cpu")
elif "setuptools" in arguments:
    distribution("setuptools", "84.2.1")
else:
    for name in "numpy sentencepiece safetensors tokenizers tyro rich positron_mini".split():
        distribution(name, "1.0")
    (venv / "bin" / "positron").write_text("#!/bin/sh\\necho positron\\n")
    (venv / "bin" / "positron").chmod(0o755)
"""

MAKE_VENV = """
import sys, sysconfig, venv
from pathlib import Path
target = Path(sys.argv[1])
venv.EnvBuilder(with_pip=False, symlinks=True).create(target)
site = target / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
(site / "pip" ).mkdir()
(site / "pip" / "__init__.py").write_text("")
(site / "pip" / "__main__.py").write_text(Path(__file__).with_name("fake_pip.py").read_text())
"""


def script(path: Path, body: str) -> Path:
    """`path`, now an executable shell script; a link that stood there is replaced, not followed."""
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@dataclass
class Computer:
    """A computer with nothing but a few tools, on which setup.sh runs in a copy of the project."""

    home: Path
    system: str = "Linux"
    machine: str = THIS_MACHINE
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lays out the tools, and the project in a folder with spaces in its name."""
        self.bin.mkdir(parents=True)
        self.project.mkdir()
        for name in ("setup.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.project / name)
        for name in TOOLS:
            found = shutil.which(name)
            if found is not None:
                (self.bin / name).symlink_to(found)
        (self.home / "fake_pip.py").write_text(FAKE_PIP, encoding="utf-8")
        (self.home / "make_venv.py").write_text(MAKE_VENV, encoding="utf-8")
        script(self.bin / "uname", f'case "$1" in -m) echo {self.machine} ;; *) echo {self.system} ;; esac')

    @property
    def bin(self) -> Path:
        """The one folder on the search path."""
        return self.home / "bin"

    @property
    def project(self) -> Path:
        """The folder of setup.sh."""
        return self.home / "my stories, $HOME & more"

    @property
    def venv(self) -> Path:
        """The environment that setup.sh makes."""
        return self.project / ".venv"

    @property
    def site(self) -> Path:
        """Where packages are installed."""
        return self.venv / "lib" / f"python{VERSION}" / "site-packages"

    def add_python(self, name: str = "python3") -> Path:
        """A working interpreter under `name`, built for this computer's processor, whose environments hold the made-up pip."""
        body = f"""case "$*" in
            "-I -m venv "*) exec '{sys.executable}' '{self.home / "make_venv.py"}' "$4" ;;
            *os.uname*) echo {VERSION.replace(".", " ")} {self.machine} complete ;;
            *) exec '{sys.executable}' "$@" ;;
        esac"""
        return script(self.bin / name, body)

    def add_claim(self, name: str, facts: str) -> Path:
        """An interpreter under `name` that only answers what it is, such as "3 9 arm64 complete"."""
        return script(self.bin / name, f"echo '{facts}'")

    def start(self, command: str = "bash setup.sh", **settings: str) -> subprocess.Popen[str]:
        """The command, begun in the project's folder in a process group of its own."""
        environment = {"PATH": str(self.bin), "FAKE_LOG": str(self.home / "pip.log"), **self.settings, **settings}
        return subprocess.Popen(
            ["bash", "-c", command], cwd=self.project, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, command: str = "bash setup.sh", **settings: str) -> tuple[int, str]:
        """Exit status and output of the command."""
        process = self.start(command, **settings)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def pip_calls(self) -> list[list[str]]:
        """The arguments of every pip call since the last look."""
        log = self.home / "pip.log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


def mac(tmp_path: Path, machine: str = "arm64", macos: str = "15.2", silicon: str = "1") -> Computer:
    """A Mac with the developer tools and no Python."""
    computer = Computer(tmp_path, system="Darwin", machine=machine)
    script(computer.bin / "sw_vers", f"echo {macos}")
    script(computer.bin / "sysctl", f"echo {silicon}")
    return computer
