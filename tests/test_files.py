"""Laws of the file writer: a reader sees the old file or the new one, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.runs import forked, needs_fork
from positron_mini import files
from positron_mini.errors import DiskFullError, PositronError, from_os_error

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def returning_zero(act: Callable[[], object]) -> Callable[[], int]:
    return lambda: (act(), 0)[1]


@needs_fork
@pytest.mark.parametrize(
    ("point", "survivor"),
    [("before_write", b"old"), ("before_fsync", b"old"), ("before_replace", b"old"), ("after_replace", b"new" * 1000)],
)
def test_C3_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path, point: str, survivor: bytes) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    assert forked(returning_zero(lambda: files.write_bytes(target, b"new" * 1000)), fault=point) == -signal.SIGKILL
    assert target.read_bytes() == survivor
    files.remove_leftovers(tmp_path, lambda _: True)
    assert entries(tmp_path) == ["file"]


@needs_fork
@pytest.mark.parametrize("point", ["before_write:2", "before_fsync", "before_replace:2", "before_rename", "after_rename"])
def test_C3_a_kill_leaves_a_folder_absent_or_whole(tmp_path: Path, point: str) -> None:
    def act() -> None:
        with files.atomic_folder(tmp_path / "made", ["old"].__contains__) as folder:
            files.write_bytes(folder / "one", b"1")
            files.write_bytes(folder / "below" / "two", b"2")

    assert forked(returning_zero(act), fault=point) == -signal.SIGKILL
    files.remove_leftovers(tmp_path, lambda _: True)
    assert entries(tmp_path) == (["made", "made/below", "made/below/two", "made/one"] if point == "after_rename" else [])


@pytest.mark.parametrize("point", ["before_write", "before_fsync", "before_replace"])
def test_C5_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    monkeypatch.setattr(files, "_passed", {})
    monkeypatch.setenv("FAULT", f"{point}:1:raise")
    with pytest.raises(DiskFullError) as caught:
        files.write_bytes(target, b"new")
    assert caught.value.exit_code == 4 and str(target) in caught.value.message and caught.value.hint
    assert target.read_bytes() == b"old" and entries(tmp_path) == ["file"]


def test_a_fault_acts_on_the_passing_it_names_and_on_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_passed", {})
    monkeypatch.setenv("FAULT", "before_write:3:raise")
    outcomes = []
    for n in range(5):
        try:
            files.write_bytes(tmp_path / "file", b"%d" % n)
            outcomes.append("written")
        except DiskFullError:
            outcomes.append("refused")
    assert outcomes == ["written", "written", "refused", "written", "written"]


def test_a_folder_whose_making_fails_never_existed(tmp_path: Path) -> None:
    def make() -> None:
        with files.atomic_folder(tmp_path / "made", ["old"].__contains__) as folder:
            files.write_text(folder / "one", "1")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        make()
    assert entries(tmp_path) == []


def test_an_existing_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("old")
    with files.atomic_folder(tmp_path / "made", ["old"].__contains__) as folder:
        files.write_text(folder / "new", "new")
        assert entries(tmp_path / "made") == ["old"]
    assert entries(tmp_path) == ["made", "made/new"]


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_C5_every_kind_of_full_disk_is_exit_code_4(code: str) -> None:
    error = from_os_error(OSError(getattr(errno, code), os.strerror(getattr(errno, code))), "writing a/b")
    assert isinstance(error, DiskFullError) and error.exit_code == 4
    assert "writing a/b" in error.message and error.hint


@pytest.mark.parametrize("code", ["EACCES", "EPERM", "EROFS", "EIO", "ENOTDIR", "ENAMETOOLONG"])
def test_other_system_errors_are_exit_code_1_with_a_hint(code: str) -> None:
    number = getattr(errno, code)
    error = from_os_error(OSError(number, os.strerror(number)), "writing a/b")
    assert error.exit_code == 1 and "writing a/b" in error.message and error.hint


@needs_fork
def test_C5_a_file_size_limit_is_a_full_disk_and_keeps_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def act() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            files.write_bytes(target, b"x" * 5000)
        except DiskFullError as error:
            return error.exit_code
        return 0

    assert forked(act) == 4
    assert target.read_bytes() == b"old" and entries(tmp_path) == ["file"]


def test_a_line_cut_off_by_a_crash_is_dropped_and_the_ones_before_it_stand(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for step in range(3):
        files.append_line(log, {"step": step})
    whole = log.read_bytes()
    for length in range(len(whole)):
        log.write_bytes(whole[:length])
        assert files.read_lines(log) == [{"step": step} for step in range(whole[:length].count(b"\n"))]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(PositronError, match=r"line 2: not JSON"):
        files.read_lines(log)


@given(records=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=4))
def test_lines_come_back_as_they_were_written(records: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("lines") / "log.jsonl"
    writable = [record for record in records if is_utf8(record)]
    for record in writable:
        files.append_line(log, record)
    assert files.read_lines(log) == writable


def is_utf8(value: object) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        return bool(files.json_text(value).encode())
    return False


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"loss": float("-inf")}]])
def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path, value: object) -> None:
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", value)
    with pytest.raises(PositronError, match="not a finite number"):
        files.append_line(tmp_path / "a.jsonl", {"x": value})
    assert files.read_json(tmp_path / "a.json") == 1 and files.read_lines(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b'{"a": 1}}'])
def test_a_file_that_is_not_json_is_named_in_the_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(PositronError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(PositronError, match="missing"):
        files.read_json(tmp_path / "missing.json")


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step_000010-77" / "training").mkdir(parents=True)
    (tmp_path / ".tmp-run.json-77").write_text("half")
    (tmp_path / "step_000010").mkdir()
    (tmp_path / ".lock").write_text("")
    files.remove_leftovers(tmp_path, lambda _: True)
    assert entries(tmp_path) == [".lock", "step_000010"]


def test_a_path_that_cannot_be_written_is_refused_without_making_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    files.check_writable(tmp_path / "a" / "b" / "c")
    with pytest.raises(PositronError, match="is a file"):
        files.check_writable(tmp_path / "file" / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PositronError, match="may not be written"):
        files.check_writable(tmp_path / "a")
    assert entries(tmp_path) == ["file"]


def test_a_file_never_takes_the_place_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []
    monkeypatch.setattr(os, "replace", lambda _, target: replaced.append(str(target)))  # or the machine would lose its own
    (tmp_path / "link").symlink_to(os.devnull)
    for path in (Path(os.devnull), tmp_path / "link"):
        with pytest.raises(PositronError, match="a device where a regular file is expected"):
            files.write_text(path, "text")
    assert replaced == []
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]
