"""setup.sh on play-acted computers, without network."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.computer import THIS_MACHINE, VERSION, Computer, mac, script
from helpers.project import ROOT
from helpers.runs import wait_for


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    """A Linux computer without an NVIDIA GPU, with one good interpreter and a folder that has a wheel of torch."""
    computer = Computer(tmp_path, settings={"FAKE_LOCAL_TORCH": "1"})
    computer.add_python()
    return computer


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Computer:
    """One more such computer for the tests that begin after a set-up."""
    computer = Computer(tmp_path_factory.mktemp("shared"), settings={"FAKE_LOCAL_TORCH": "1"})
    computer.add_python()
    return computer


@pytest.fixture
def ready(shared: Computer) -> Computer:
    """A computer whose set-up, with the test tools, is done."""
    assert shared.run(POSITRON_EXTRAS="dev")[0] == 0
    shared.pip_calls()
    return shared


def test_a_mac_with_python_39_only_gets_one_sentence_and_the_way_out(tmp_path: Path) -> None:
    computer = mac(tmp_path)
    path = computer.add_claim("python3", "3 9 arm64 complete")
    status, output = computer.run()
    sentence, hint = output.splitlines()
    assert status == 1
    assert sentence == f"error: Positron Mini needs Python 3.11 to 3.14, and this computer offers only Python 3.9 ({path})"
    assert hint.startswith("  hint: brew install python@3.13 ")
    assert not computer.venv.exists()


@pytest.mark.parametrize(
    ("make", "name", "facts", "said"),
    [
        (Computer, "python3", f"3 11 {THIS_MACHINE} without-venv", ["Python 3.11", "hint: sudo apt install python3.11-venv "]),
        (mac, "python3.13", "3 13 x86_64 complete", ["python3.13 is built for Intel processors"]),
    ],
    ids=["without environments", "Intel Python on Apple silicon"],
)
def test_a_python_that_will_not_do_is_passed_over_and_the_reason_said(
    tmp_path: Path, make: Callable[[Path], Computer], name: str, facts: str, said: list[str]
) -> None:
    computer = make(tmp_path)
    computer.add_claim(name, facts)
    status, output = computer.run()
    assert status == 1 and all(part in output for part in said)


@pytest.mark.parametrize(
    ("machine", "macos", "silicon", "words"),
    [("x86_64", "15.2", "0", "Macs with an Intel processor"), ("arm64", "13.6.1", "1", "macOS 14 or newer, and this Mac has macOS 13.6.1")],
)
def test_a_mac_that_torch_does_not_support_is_told_so(tmp_path: Path, machine: str, macos: str, silicon: str, words: str) -> None:
    computer = mac(tmp_path, machine, macos, silicon)
    computer.add_python()
    status, output = computer.run()
    assert status == 1
    assert words in output
    assert [line.split(":")[0] for line in output.splitlines()] == ["error", "  hint"]
    assert computer.pip_calls() == []


def test_the_chosen_interpreter_wins_and_a_wrong_choice_is_named(computer: Computer) -> None:
    computer.add_claim("old", f"3 8 {THIS_MACHINE} complete")
    status, output = computer.run(POSITRON_PYTHON="old")
    assert status == 1
    assert "offers only Python 3.8" in output
    status, output = computer.run(POSITRON_PYTHON="no-such-python")
    assert status == 1
    assert output.startswith("error: Positron Mini needs Python 3.11 to 3.14, and POSITRON_PYTHON=no-such-python does not work\n")


@pytest.mark.parametrize("case", ["local wheel", "linux", "linux with nvidia", "mac"])
def test_torch_comes_from_the_nearest_source_and_only_at_the_pinned_version(tmp_path: Path, case: str) -> None:
    computer = mac(tmp_path) if case == "mac" else Computer(tmp_path)
    computer.add_python()
    if case == "local wheel":
        computer.settings["FAKE_LOCAL_TORCH"] = "1"
    if case == "linux with nvidia":
        script(computer.bin / "nvidia-smi", "echo 'GPU 0: NVIDIA L4'")
    assert computer.run()[0] == 0
    pin = next(line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    first, *others = [call for call in computer.pip_calls() if any("torch" in word for word in call)]
    assert first == ["install", "--no-index", "--no-deps", pin]
    default = [["install", "-c", "constraints.txt", pin]]
    public = [["install", "--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu", pin]]
    assert others == {"local wheel": [], "linux": public, "linux with nvidia": default, "mac": default}[case]


def test_everything_else_is_installed_under_the_constraints(computer: Computer) -> None:
    computer.run(POSITRON_EXTRAS="web, dev")
    assert computer.pip_calls()[1:] == [
        ["install", "-c", "constraints.txt", "setuptools"],
        ["install", "-c", "constraints.txt", "--no-build-isolation", "-e", ".[dev,web]"],
    ]


def test_a_second_run_installs_nothing_says_nothing_and_takes_under_two_seconds(ready: Computer) -> None:
    for extras in ("dev", ""):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ready.run(POSITRON_EXTRAS=extras) == (0, "")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # it waits for nothing but the machine
    assert ready.pip_calls() == []


def test_a_changed_pin_installs_again_and_keeps_the_extras(ready: Computer) -> None:
    with (ready.project / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("another==1\n")
    assert ready.run()[0] == 0
    assert ready.pip_calls()[-1][-1] == ".[dev]"


def break_python(computer: Computer) -> None:
    """The interpreter that the environment was made with is gone."""
    for name in ("python", "python3", f"python{VERSION}"):
        (computer.venv / "bin" / name).unlink(missing_ok=True)
        (computer.venv / "bin" / name).symlink_to(computer.home / "uninstalled" / name)


def lose_everything_but_the_folder(computer: Computer) -> None:
    """A set-up that was stopped at its very start."""
    shutil.rmtree(computer.venv)
    computer.venv.mkdir()


def lose_a_package(computer: Computer) -> None:
    """Somebody deleted a package's files but not its record."""
    shutil.rmtree(computer.site / "torch")


def lose_the_program(computer: Computer) -> None:
    """The command is missing."""
    (computer.venv / "bin" / "positron").unlink()


@pytest.mark.parametrize("damage", [break_python, lose_everything_but_the_folder, lose_a_package, lose_the_program])
def test_a_broken_environment_is_repaired(ready: Computer, damage: Callable[[Computer], None]) -> None:
    damage(ready)
    assert ready.run()[0] == 0
    assert (ready.site / "torch" / "__init__.py").exists()
    assert subprocess.check_output([ready.venv / "bin" / "positron"], text=True) == "positron\n"
    assert ready.run() == (0, "")


def test_a_missing_pip_is_put_back_without_losing_the_environment(ready: Computer) -> None:
    shutil.move(ready.site / "pip", ready.home / "pip")
    # The real ensurepip takes seconds; the made-up one stands where Python looks first.
    wrapper = f"""case "$*" in *ensurepip*) exec /bin/cp -R '{ready.home / "pip"}' '{ready.site}' ;; esac"""
    script(ready.venv / "bin" / "python", f"{wrapper}\nexec '{ready.venv / 'bin' / 'python3'}' \"$@\"")
    (ready.venv / "bin" / "python3").unlink()
    (ready.venv / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    (ready.venv / "setup.stamp").unlink()
    kept = ready.site / "kept"
    kept.touch()
    assert ready.run()[0] == 0
    assert kept.exists()
    assert not any("torch==2.13.0" in call for call in ready.pip_calls())


def test_a_moved_folder_is_set_up_again_where_it_is_now(computer: Computer) -> None:
    computer.run()
    computer.pip_calls()
    moved = computer.home / "elsewhere"
    shutil.move(computer.project, moved)
    computer.project.mkdir()
    assert computer.run(f"bash '{moved}/setup.sh'")[0] == 0
    calls = computer.pip_calls()
    assert calls[-1][-2:] == ["-e", "."]
    assert not any("torch==" in word for call in calls for word in call), "torch moved along"


def start_hanging(computer: Computer) -> subprocess.Popen[str]:
    """A set-up in whose pip, with half of torch written, time stands still."""
    process = computer.start(FAKE_HANG="torch==")
    wait_for((computer.home / "pip.log.hangs").exists)
    return process


def test_a_killed_set_up_is_finished_by_the_next_one(computer: Computer) -> None:
    process = start_hanging(computer)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    half_made = computer.site / "torch-2.13.0.dist-info"
    assert half_made.exists()
    assert computer.run()[0] == 0
    assert not half_made.exists(), "half a torch must not count as installed"
    assert (computer.site / "torch-2.13.0+cpu.dist-info").exists()


def test_a_pip_that_outlives_its_killed_set_up_keeps_the_next_one_waiting(computer: Computer) -> None:
    process = start_hanging(computer)
    process.kill()
    process.wait()
    following = computer.start()
    assert following.stdout is not None
    assert following.stdout.readline() == "another set-up is at work in this folder; waiting for it\n"
    assert len(computer.pip_calls()) == 1
    os.killpg(process.pid, signal.SIGKILL)
    following.communicate(timeout=60)
    assert following.returncode == 0
    process.communicate()


def test_two_set_ups_at_once_do_the_work_once(computer: Computer) -> None:
    both = [computer.start(), computer.start()]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(computer.pip_calls()) == 3, outputs


def test_a_failure_shows_the_end_of_the_log_and_a_hint_that_fits(computer: Computer) -> None:
    status, output = computer.run(FAKE_FAIL="no-build-isolation", FAKE_MESSAGE="OSError: [Errno 28] No space left on device")
    lines = output.splitlines()
    shown = [line for line in lines if line.startswith("  | ")]
    assert status == 1
    assert "error: installing the packages failed; the end of .venv/setup.log:" in lines
    assert len(shown) == 12
    assert shown[-1] == "  | OSError: [Errno 28] No space left on device"
    assert lines[-1].startswith("  hint: free about 3 GB of disk space")
    assert not (computer.venv / "setup.stamp").exists()


def test_sourcing_leaves_the_caller_as_it_was_except_for_one_name(ready: Computer) -> None:
    elsewhere = ready.home / "another folder"
    elsewhere.mkdir()
    command = f"""
        state() {{ set -o; compgen -v; compgen -A function; env | grep POSITRON || true; }}
        set -euo pipefail; cd '{elsewhere}'; set -- --a-flag; trap 'echo bye' EXIT
        state >before; state >before; source '{ready.project}/setup.sh'; state >after
        echo "$POSITRON_BIN"; echo "$PWD"; echo "$*"
    """
    status, output = ready.run(command)
    before, after = (set((elsewhere / name).read_text(encoding="utf-8").splitlines()) for name in ("before", "after"))
    assert (status, output.splitlines()) == (0, [os.path.realpath(ready.venv / "bin"), str(elsewhere), "--a-flag", "bye"])
    assert after - before == {"POSITRON_BIN"}
    assert before <= after


def test_a_failed_set_up_stops_the_script_that_sourced_it(computer: Computer) -> None:
    status, output = computer.run("set -e; source ./setup.sh; echo went on", FAKE_FAIL="setuptools")
    assert status == 1
    assert "went on" not in output


@pytest.mark.parametrize("script", ["ask_model.sh", "bootstrap_tiny_llm.sh", "run_tests.sh", "sft_quickstart.sh", "train_incremental.sh"])
def test_a_script_runs_what_lies_beside_it_whatever_CDPATH_says(tmp_path: Path, script: str) -> None:
    for place in ("here", "other"):
        (tmp_path / place / "mini").mkdir(parents=True)
        (tmp_path / place / "mini/setup.sh").write_text(f"echo {place} >&2; exit 7\n", encoding="utf-8")
    shutil.copy(Path(__file__).parent.parent / script, tmp_path / "here/mini" / script)
    environment = {**os.environ, "CDPATH": str(tmp_path / "other")}
    done = subprocess.run(
        ["bash", f"mini/{script}"], cwd=tmp_path / "here", env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr.split()[-1:]) == (7, ["here"])
