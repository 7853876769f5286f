"""Laws of the compiled library: made once, kept whole, loaded only from a folder of the user's own, tried apart, done without in words."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import needs_compiler
from positron_mini import device
from positron_mini import fast as native
from positron_mini.device import children
from positron_mini.errors import PositronError
from positron_mini.fast import build, layout, trial
from positron_mini.train.settings import decide

posix_only = pytest.mark.skipif(os.name == "nt", reason="modes and groups of processes")

TINY = "\n".join(f'extern "C" void {name}() {{}}' for name in layout.FUNCTIONS)  # every function, none of which does anything


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and sources that compile in a moment."""
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in (*build.PARTS, "vectors.h"):
        (sources / name).write_text(TINY if name == build.PARTS[0] else "")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "FLAGS", ("-shared", "-fPIC"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that finds nothing wrong: what the quick sources compute is no matter."""
    real = children.finish

    def finish(command: list[str], folder: Path, seconds: float) -> tuple[int | None, str]:
        return (0, "") if "positron_mini.fast.trial" in command else real(command, folder, seconds)

    monkeypatch.setattr(children, "finish", finish)


@pytest.fixture
def real_library() -> ctypes.CDLL:
    """The library of this process."""
    found = native.library()
    if found is None:
        pytest.skip(native.why_not())
    return found


def no_compilation(*_: object) -> Any:
    """In the place of `children.finish`."""
    raise AssertionError("something was compiled")


def compiler_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ compiler that is this shell script."""
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def kept(cache: Path) -> Path:
    """The one file in the folder."""
    (path,) = cache.iterdir()
    return path


# --- kept whole -------------------------------------------------------------------------------------------------------------------------


@needs_compiler
@posix_only
def test_X2_a_library_is_made_once_in_a_folder_of_the_user_alone(cache: Path, trusted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    build.open_library()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    digest = hashlib.sha256(kept(cache).read_bytes()).hexdigest()
    assert kept(cache).stem.endswith(f"-{digest}")
    with monkeypatch.context() as patch:
        patch.setattr(children, "finish", no_compilation)
        assert layout.has_all(build.open_library())
    (build.SOURCES / "vectors.h").write_text("// changed\n")
    build.open_library()
    assert len(list(cache.iterdir())) == 2


def _rewrite(path: Path, data: bytes) -> None:
    """Another file in its place: this process has the old one mapped into its memory."""
    path.unlink()
    path.write_bytes(data)


def _cut(path: Path) -> None:
    _rewrite(path, path.read_bytes()[:4_096])


def _empty(path: Path) -> None:
    _rewrite(path, b"")


def _zeros(path: Path) -> None:
    data = path.read_bytes()
    _rewrite(path, data[:64] + bytes(len(data) - 64))


def _one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    _rewrite(path, bytes(data))


def _link(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _without_functions(path: Path) -> None:
    """A file whose name is right and that loads, but is not this library."""
    source = path.parent.parent / "other.cpp"
    source.write_text('extern "C" void nothing() {}')
    other = path.parent.parent / "other.so"
    children.finish([str(device.compiler()), "-shared", "-fPIC", str(source), "-o", str(other)], path.parent.parent, 60)
    path.unlink()
    key = path.stem.partition("-")[0]
    shutil.copy(other, path.with_name(f"{key}-{hashlib.sha256(other.read_bytes()).hexdigest()}.so"))


@needs_compiler
@posix_only
@pytest.mark.parametrize(
    "damage",
    [_cut, _zeros, _one_bit, _empty, _link, _pipe, _without_functions],
    ids=["cut", "zeros", "one bit", "empty", "a link", "a pipe", "no functions"],
)
def test_X2_what_was_damaged_is_never_loaded_and_made_anew(
    damage: Callable[[Path], None], cache: Path, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.open_library()
    before = kept(cache)
    name, content = before.name, before.read_bytes()
    damage(before)
    opened: list[str] = []
    real = ctypes.CDLL

    def load(path: str) -> ctypes.CDLL:
        opened.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert layout.has_all(build.open_library())
    assert (kept(cache).name, kept(cache).read_bytes()) == (name, content)
    assert damage is _without_functions or opened == [hashlib.sha256(content).hexdigest()]


@needs_compiler
@pytest.mark.parametrize("point", ["before_fsync", "before_replace"])
def test_X2_a_library_that_cannot_be_written_leaves_nothing_behind(
    point: str, cache: Path, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("positron_mini.files._passed", {})
    monkeypatch.setenv("FAULT", f"{point}:1:raise")
    with pytest.raises(PositronError, match="no space left"):
        build.open_library()
    monkeypatch.delenv("FAULT")
    assert not list(cache.iterdir())
    build.open_library()  # nothing of it is remembered


# --- of the user alone ------------------------------------------------------------------------------------------------------------------


def _others_may_write(folder: Path) -> None:
    folder.chmod(0o777)


def _group_may_write(folder: Path) -> None:
    folder.chmod(0o770)


def _is_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def _lies_in_an_open_folder(folder: Path) -> None:
    folder.parent.chmod(0o777)


def _is_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


@needs_compiler
@posix_only
@pytest.mark.parametrize(
    ("open_up", "said"),
    [
        (_others_may_write, "may be written to by others"),
        (_group_may_write, "may be written to by others"),
        (_is_a_link, "is a link"),
        (_lies_in_an_open_folder, "where others may replace it"),
        (_is_a_file, "File exists"),
    ],
)
def test_X2_nothing_is_loaded_from_a_folder_that_is_not_the_users_own(
    open_up: Callable[[Path], None], said: str, cache: Path, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.open_library()
    open_up(cache)
    monkeypatch.setattr(ctypes, "CDLL", no_compilation)
    monkeypatch.setattr(children, "finish", no_compilation)
    with pytest.raises(PositronError) as caught:
        build.open_library()
    assert said in caught.value.message and str(cache) in caught.value.message


@posix_only
def test_X2_a_folder_of_another_user_is_not_the_users_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device.private_folder("kernels")
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(PositronError, match="belongs to another user"):
        device.private_folder("kernels")


def test_without_a_home_there_is_no_folder_and_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(PositronError, match="no cache folder"):
        device.private_folder("kernels")


def test_X2_torch_compile_keeps_its_code_in_a_folder_of_the_user_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda function, **_: function)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("CXX", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    device.compiled(len)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache.with_name("inductor"))
    assert stat.S_IMODE(cache.with_name("inductor").stat().st_mode) == 0o700
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/of/the/user")
    device.compiled(len)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/of/the/user"


# --- tried apart ------------------------------------------------------------------------------------------------------------------------


def test_the_trial_knows_a_right_library(real_library: ctypes.CDLL) -> None:
    assert layout.has_all(real_library) and trial.wrong(real_library) == []


class Spoiled:
    """A library of which one function does nothing."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._library, self._name = library, name

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name == self._name else getattr(self._library, name)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("add_norm_float32", "pointwise"), ("swiglu_float32", "pointwise"), ("cross_entropy_float32", "pointwise"),
        ("attention_float32", "attention"), ("attention_backward_float32", "attention"), ("decode_step", "decode_step"),
    ],
)  # fmt: skip
def test_the_trial_finds_a_function_that_computes_wrong(name: str, part: str, real_library: ctypes.CDLL) -> None:
    assert trial.wrong(Spoiled(real_library, name)) == [part]  # type: ignore[arg-type]


@needs_compiler
@posix_only
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("*(volatile int*)0 = 1;", "SIGSEGV"),
        ("__builtin_trap();", "SIG"),
        ("for (volatile int i = 0;;) i = i;", "no answer"),
        ("", "wrong: "),
    ],
    ids=["it crashes", "it traps", "it hangs", "it computes nothing"],
)
def test_X2_kernels_that_do_not_work_end_a_process_apart_once(
    body: str, said: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (build.SOURCES / build.PARTS[0]).write_text(TINY.replace("{}", f"{{ {body} }}"))
    monkeypatch.setattr(build, "TRIAL_SECONDS", 5 if said == "no answer" else 60)
    with pytest.raises(build.CompilerError, match=said):
        build.open_library()
    assert "going on with PyTorch's kernels" in caplog.text and [path.suffix for path in cache.iterdir()] == [".failed"]
    monkeypatch.setattr(children, "finish", no_compilation)
    with pytest.raises(build.CompilerError, match=said) as caught:
        build.open_library()
    assert caught.value.hint == "positron doctor tries again"


# --- compilers --------------------------------------------------------------------------------------------------------------------------


@posix_only
def test_X3_a_compiler_that_hangs_is_waited_for_once_with_a_word_and_ended_with_all_its_children(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pids = tmp_path / "pids"
    compiler_that(f"sleep 600 & echo $! > '{pids}'; echo $$ >> '{pids}'; wait", tmp_path, monkeypatch)
    monkeypatch.setattr(build, "COMPILE_SECONDS", 3)
    with pytest.raises(build.CompilerError, match="had not finished after 3 s"):
        build.open_library()
    first, last = caplog.messages
    assert first.startswith("compiling the native kernels for this processor, once: some seconds, 3 at the most")
    assert last.startswith("going on with PyTorch's kernels: the C++ compiler ")
    for pid in map(int, pids.read_text().split()):
        assert _ends(pid)
    with monkeypatch.context() as patch:
        patch.setattr(children, "finish", no_compilation)
        with pytest.raises(build.CompilerError, match="had not finished after 3 s"):
            build.open_library()
    compiler_that("exit 1 # another compiler, another chance", tmp_path, monkeypatch)
    with pytest.raises(build.CompilerError, match="fails"):
        build.open_library()


def _ends(pid: int) -> bool:
    """Whether a process ends soon; one that nobody has collected has."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@posix_only
def test_X3_who_interrupts_a_compilation_ends_the_compiler_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        with pytest.raises(KeyboardInterrupt):
            children.finish(["sh", "-c", f"echo $$ > '{pid_file}'; sleep 600; true"], tmp_path, 600)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert _ends(int(pid_file.read_text()))


@posix_only
def test_the_doctor_tries_again(cache: Path, trusted: None, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    (device.private_folder("kernels") / f"{build.key_of(build._compiler(), build.command(build._compiler()))}.failed").write_text("it hung")
    assert native.library() is None and native.why_not() == "it hung; positron doctor tries again" and native.compiler_fails()
    native.forget()
    assert native.library() is not None and native.why_not() == "" and not native.compiler_fails()


@pytest.fixture
def fresh() -> Iterator[None]:
    """`native` as in a new process, and as it was afterwards."""
    real = native._found()
    native._found.cache_clear()
    yield
    native._found.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "open_library", lambda: real.library if real.library is not None else _raise(real.error))
        native._found()


def _raise(error: PositronError | None) -> Any:
    assert error is not None
    raise error


@posix_only
@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo 'x.cpp:1: fatal error: cmath: No such file' >&2; exit 1", "fatal error: cmath: No such file"),
        ("exit 0", "fails (it ended with code 0)"),
        ('for last; do :; done; echo nonsense > "$last"', "do not work ("),
        ("exit 126", "fails (it ended with code 126)"),
    ],
)
def test_X2_the_true_reason_is_said_when_there_are_no_kernels(
    does: str, said: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    compiler = compiler_that(does, tmp_path, monkeypatch)
    assert native.library() is None
    assert said in native.why_not() and str(compiler) in native.why_not() and native.compiler_fails()


def test_a_computer_without_a_compiler_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.library() is None and native.why_not() == "there is no C++ compiler" and not native.compiler_fails()


@posix_only
def test_X2_a_compiler_that_was_mended_is_used_at_the_next_start(
    cache: Path, trusted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = device.compiler()
    if real is None:
        pytest.skip("no C++ compiler")
    compiler_that(f"test -e '{tmp_path / 'headers'}' && exec '{real}' \"$@\"; exit 1", tmp_path, monkeypatch)
    with pytest.raises(build.CompilerError):
        build.open_library()
    (tmp_path / "headers").touch()
    assert layout.has_all(build.open_library())


@posix_only
def test_X3_torch_compile_is_not_left_waiting_for_a_compiler_that_does_not_work(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    from dataclasses import replace

    from helpers.models import shape
    from positron_mini.config import TrainConfig

    compiler_that("exit 1", tmp_path, monkeypatch)
    lines: list[str] = []
    machine = replace(device.this_machine(), devices=("cpu",), verdict=None, has_compiler=True)
    config = TrainConfig(compile="on", batch_tokens=64, context_len=32, threads=1)
    assert not decide(config, shape(), None, None, machine, lines.append).compile
    assert any(line.startswith("torch.compile is off, no C++ compiler works: the C++ compiler ") for line in lines)


def test_where_nobody_listens_the_sentence_is_written_to_stderr_alone(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import logging; from positron_mini.fast import build\n"
        "build.log.warning('compiling the native kernels, %d s', 3); assert not logging.getLogger().handlers"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    assert logging.lastResort is not None
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(children.ROOT)!r})\n{code}"]
    assert children.finish(command, tmp_path, 60) == (0, "compiling the native kernels, 3 s")
