"""Rows F of docs/reliability.md: files that are not ours. A person's files in and around a run stay, and a copied run goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from helpers.faults import disk_with_room, watched
from helpers.runs import BASE, assert_same_run, digests, forked, listing, needs_fork, positron, spawn, tiny_train, trained, wait_for
from positron_mini import files
from positron_mini.errors import DroppedError, PositronError
from positron_mini.own_files import foreign, leftovers
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.find import find_checkpoint, find_model, read_found
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import LOGS
from positron_mini.store.writer import held
from positron_mini.text.corpus.memo import locked
from positron_mini.text.prepare.unfinished import Origin, unfinished_folder

pytestmark = pytest.mark.usefixtures("no_waiting")
HALF = b'{"messages": "mine"}\n{"messages": "has no newline"}'


def train_on(run: Path = BASE) -> None:
    """Go on from the step before the cool-down, which sets the run back, saves, and drops steps."""
    positron("train", "--out_dir", str(run), "--max_steps", "32").ok()


# --- F1: names that this program did not make --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [train_on, lambda: positron("runs", "prune", "--yes", "--keep", "1")], ids=["train", "prune"])
def test_F1_a_persons_files_in_a_run_folder_keep_every_byte(workshop: Path, act: Callable[[], object]) -> None:
    outside = workshop / "outside.jsonl"
    outside.write_bytes(HALF)
    mine = [BASE / name for name in ("my-conversations.jsonl", ".tmp-notes", ".tmp-thesis-2", ".tmp-run.json", "notes.txt")]
    mine += [BASE / ".tmp-album-7" / "photo", BASE / "my folder" / "a.jsonl"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(HALF)
    (BASE / "photo.jsonl").symlink_to(outside)
    act()
    assert [path.read_bytes() for path in [*mine, outside]] == [HALF] * (len(mine) + 1)
    assert os.readlink(BASE / "photo.jsonl") == str(outside)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("log", LOGS)
def test_F1_a_log_with_a_second_name_is_copied_before_it_is_written(workshop: Path, log: str, link: Callable[..., None]) -> None:
    outside = workshop / "kept.jsonl"
    rows = (BASE / log).read_bytes() if (BASE / log).exists() else b""
    outside.write_bytes(rows + b'{"step": 4')  # a line that was cut off
    (BASE / log).unlink(missing_ok=True)
    link(outside, BASE / log)
    run = RunFolder(BASE)
    with run.writing():
        run.log(log.removesuffix(".jsonl"), {"step": 31})
    assert outside.read_bytes() == rows + b'{"step": 4'
    assert (BASE / log).read_bytes() == rows + b'{"step": 31}\n' and not (BASE / log).is_symlink()


@pytest.mark.parametrize("size", [0, 1, 9, 65_535, 65_536, 65_537, 200_000])
def test_F1_what_a_crash_left_of_a_line_is_cut_off_whatever_its_length(tmp_path: Path, size: int) -> None:
    log = tmp_path / "metrics.jsonl"
    for whole in (b"", b"{}\n", b'{"a": 1}\n{}\n'):
        log.write_bytes(whole + b"x" * size)
        files.own_lines(log)
        assert log.read_bytes() == whole


def test_F1_only_what_the_writer_leaves_is_a_leftover(tmp_path: Path) -> None:
    ours = [".tmp-run.json-1", ".tmp-step_000010-77", ".tmp-old-step_000010-77", ".tmp-latest-5", ".tmp-metrics.jsonl-9"]
    ours += [".tmp-old-step_000020"]  # as earlier versions left it
    others = [".tmp-notes", ".tmp-run.json", ".tmp-thesis-3", ".tmp-step_10-3", ".tmp-step_000010-x", "run.json-1", ".tmp-7", ".tmp-old-7"]
    for name in ours + others:
        (tmp_path / name).mkdir() if "step" in name else (tmp_path / name).write_text("")
    assert [path.name for path in RunFolder(tmp_path).leftovers()] == sorted(ours)
    with RunFolder(tmp_path).writing():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, ".lock"])


def test_F1_every_name_of_a_checkpoint_and_of_what_the_writer_builds_is_known(workshop: Path) -> None:
    seen: set[str] = set()
    with watched(lambda _: seen.update(path.name for path in Path("runs/new").glob("*") if Path("runs/new").exists())):
        assert tiny_train("runs/new", "--max_steps", "12").code == 0
    temporary = {name for name in seen if name.startswith(".tmp-")}
    known = {path.name for path in leftovers(Path("runs/new"), lambda _: True)}
    assert temporary and known == set()
    for name in temporary:
        (Path("runs/new") / name).write_text("")
    assert {path.name for path in RunFolder(Path("runs/new")).leftovers()} == temporary
    assert all(
        foreign(RunFolder(Path("runs/new")).folder(step), ckpt.FILES.__contains__) == [] for step in RunFolder(Path("runs/new")).steps()
    )


@pytest.mark.parametrize("name", ["notes.txt", "training/plan.txt", "a/b/c.json", "model.safetensors.bak"])
def test_F1_an_old_step_with_a_persons_file_is_kept_and_it_is_said(workshop: Path, name: str) -> None:
    assert tiny_train("runs/x", "--max_steps", "40", "--until_step", "10", "--milestones", "none").code == 0
    mine = Path("runs/x/step_000005") / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(HALF)
    (Path("runs/x/step_000010") / ".DS_Store").write_bytes(b"left by a file browser")
    result = positron("train", "--out_dir", "runs/x", "--until_step", "25")
    assert result.code == 0 and result.err.count(f"step 5 is kept: {name} in its folder was not made by this program") == 1
    assert RunFolder(Path("runs/x")).steps() == [5, 16, 20, 25] and mine.read_bytes() == HALF  # the cool-down begins after step 16
    pruned = positron("runs", "prune", "--run", "runs/x", "--keep", "1", "--yes")
    assert f"step_000005 stays: {name} in it was not made by this program" in pruned.err and mine.read_bytes() == HALF


def test_F1_dropping_a_training_state_drops_two_files_and_follows_no_link(workshop: Path) -> None:
    step, mine = BASE / "step_000025", BASE / "step_000025/training/plan.txt"
    mine.write_bytes(HALF)
    ckpt.drop_training(step)
    assert digests(step / "training").keys() == {"plan.txt"} and ckpt.open_checkpoint(step).has_training is False
    other = BASE / "step_000030"
    shutil.move(other / "training", workshop / "elsewhere")
    (other / "training").symlink_to(workshop / "elsewhere")
    before = listing(workshop / "elsewhere")
    ckpt.drop_training(other)
    assert listing(workshop / "elsewhere") == before and before


@pytest.mark.parametrize("stands", ["link", "file", "folder"])
def test_F1_a_folder_is_written_over_nothing_but_its_own_kind(tmp_path: Path, stands: str) -> None:
    place, mine = tmp_path / "step_000001", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_bytes(HALF)
    if stands == "link":
        place.symlink_to(mine)
    elif stands == "file":
        place.write_bytes(HALF)
    else:
        shutil.copytree(mine, place)
    before = listing(tmp_path)
    with pytest.raises(PositronError) as caught, files.atomic_folder(place, ckpt.FILES.__contains__):
        pass
    assert caught.value.hint == f"mv {place} {place}-moved" and listing(tmp_path) == before
    assert os.system(caught.value.hint) == 0  # and the hint works
    with files.atomic_folder(place, ckpt.FILES.__contains__) as folder:
        files.write_text(folder / "config.json", "{}")
    assert (mine / "thesis.txt").read_bytes() == HALF


def test_F1_a_planted_link_with_a_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(HALF)
    (tmp_path / f".tmp-run.json-{os.getpid()}").symlink_to(mine)
    files.write_text(tmp_path / "run.json", "{}")
    assert mine.read_bytes() == HALF and (tmp_path / "run.json").read_text() == "{}" and not (tmp_path / "run.json").is_symlink()


def test_F1_a_lock_that_is_a_link_is_refused_and_its_file_keeps_every_byte(workshop: Path) -> None:
    mine = workshop / "mine.txt"
    mine.write_bytes(HALF)
    (BASE / ".lock").unlink(missing_ok=True)
    (BASE / ".lock").symlink_to(mine)
    result = positron("train", "--out_dir", "runs/base", "--max_steps", "32")
    assert result.code == 1 and "is a link" in result.sentence and mine.read_bytes() == HALF
    assert os.system(result.hint) == 0
    train_on()
    assert mine.read_bytes() == HALF


@pytest.mark.parametrize("name", ["unfinished-novel", "unfinished-0123456789abcdef-copy", ".tmp-parts", ".tmp-drafts-4"])
def test_F1_a_persons_folder_in_the_cache_stays(workshop: Path, name: str) -> None:
    cache = Path("data/cache")
    mine, stale = cache / name / "chapter.txt", cache / "unfinished-0123456789abcdef" / "00000.json"
    for path in (mine, stale):
        path.parent.mkdir(parents=True)
        path.write_bytes(HALF)
    with locked(cache, pytest.fail):
        unfinished_folder(cache, Origin.of(Path("text.txt"), None), [])
    assert mine.read_bytes() == HALF and not stale.exists()


def test_F1_a_report_is_not_written_through_a_link(workshop: Path) -> None:
    pictures = workshop / "pictures"
    pictures.mkdir()
    for name in ("loss.png", "skills.png"):
        (pictures / name).write_bytes(HALF)
    (BASE / "report").symlink_to(pictures)
    result = positron("report", "--run", "runs/base")
    assert result.code == 1 and "report is a link" in result.sentence
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == {"loss.png": HALF, "skills.png": HALF}


# --- F2: what is shown is what goes ------------------------------------------------------------------------------------------------------


def prune(*words: str) -> tuple[list[str], str]:
    """The paths that `runs prune` shows or removes, and what it says besides."""
    result = positron("runs", "prune", "--json", *words).ok()
    return [entry["path"] for entry in json.loads(result.out)["entries"]], result.err


def test_F2_a_link_named_superseded_is_not_followed(workshop: Path) -> None:
    documents = workshop / "documents"
    (documents / "001").mkdir(parents=True)
    for path in (documents / "thesis.txt", documents / "001" / "metrics.jsonl"):
        path.write_bytes(HALF)
    (BASE / "superseded").symlink_to(documents)
    before = listing(documents)
    for words in ((), ("--yes",)):
        shown, said = prune(*words)
        assert shown == [] and "runs/base/superseded is a link" in said
    result = positron("train", "--out_dir", "runs/base", "--resume_from_step", "25")  # would move step 30 there
    assert result.code == 1 and "superseded is a link" in result.sentence and RunFolder(BASE).steps()[-1] == 30
    assert listing(documents) == before
    assert os.system(result.hint) == 0
    assert positron("train", "--out_dir", "runs/base", "--resume_from_step", "25").code == 0
    assert listing(documents) == before


def test_F2_what_prune_shows_is_what_goes_and_the_rest_of_superseded_stays(workshop: Path) -> None:
    for _ in range(3):
        assert positron("train", "--out_dir", "runs/base", "--resume_from_step", "25").code == 0
    attic, documents = BASE / "superseded", workshop / "documents"
    documents.mkdir()
    mine = [attic / "notes.txt", attic / "my steps" / "step_000010", attic / "002" / "photo.png", documents / "thesis.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(HALF)
    (attic / "004").symlink_to(documents)
    (attic / ".DS_Store").write_bytes(b"")
    shown, said = prune()
    assert shown == ["runs/base/superseded/001", "runs/base/superseded/003"]
    for name, why in (
        ("notes.txt", "was not made"),
        ("my steps", "was not made"),
        ("004", "was not made"),
        ("002", "stays: photo.png in it"),
    ):
        assert f"superseded/{name} {why}" in said
    before = {path.relative_to(workshop).as_posix() for path in workshop.rglob("*")}
    assert prune("--yes")[0] == shown
    gone = before - {path.relative_to(workshop).as_posix() for path in workshop.rglob("*")}
    assert gone and all(any(name == each or name.startswith(f"{each}/") for each in shown) for name in gone)
    assert all(path.read_bytes() == HALF for path in mine)


def test_F2_a_run_that_a_link_leads_to_is_shown_by_where_it_lies(workshop: Path) -> None:
    assert positron("train", "--out_dir", "runs/base", "--resume_from_step", "25").code == 0
    shutil.move("runs", "big disk")
    os.symlink("big disk", "runs")
    assert prune("--yes")[0] == [str((workshop / "big disk/base/superseded/001").resolve())]
    assert not (workshop / "big disk/base/superseded/001").exists()


# --- F3: copies --------------------------------------------------------------------------------------------------------------------------


def by_zip(source: Path, target: Path) -> None:
    """A copy by an archive, in which a link to a folder becomes an empty folder."""
    shutil.unpack_archive(shutil.make_archive("copy", "zip", source), target)


def by_zip_of_links(source: Path, target: Path) -> None:
    """A copy by an archive that stores links, unpacked where there are none: each becomes a text of what it points to."""
    shutil.copytree(source, target, ignore=lambda folder, names: [name for name in names if Path(folder, name).is_symlink()])
    for path in source.iterdir():
        if path.is_symlink():
            (target / path.name).write_text(os.readlink(path))
    assert zipfile.is_zipfile("copy.zip") is False


def without_links(source: Path, target: Path) -> None:
    """A copy as rsync makes it without -l."""
    shutil.copytree(source, target, ignore=lambda folder, names: [name for name in names if Path(folder, name).is_symlink()])


COPIES: dict[str, Callable[[Path, Path], Any]] = {
    "cp -r": lambda source, target: shutil.copytree(source, target, symlinks=True),
    "cp -rL": shutil.copytree,
    "zip": by_zip,
    "zip -y": by_zip_of_links,
    "rsync": without_links,
}


@pytest.mark.parametrize("way", COPIES)
def test_F3_a_copied_run_answers_with_its_newest_step_and_goes_on_like_the_original(workshop: Path, way: str) -> None:
    assert tiny_train("runs/x", "--max_steps", "30", "--until_step", "10").code == 0
    COPIES[way](Path("runs/x"), Path("copies/x"))
    for spelling in ("copies/x", "copies/x/latest", "copies/x/latest.pt"):
        assert find_checkpoint(spelling).step == 10
    for run in ("runs/x", "copies/x"):
        for until in ("20", "30"):
            positron("train", "--out_dir", run, "--until_step", until).ok()
    assert trained(Path("copies/x"), 30) == trained(Path("runs/x"), 30)
    assert_same_run(Path("runs/x"), Path("copies/x"))
    assert not Path("copies/x/superseded").exists()
    assert positron("verify", "copies/x").code == 0


@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_F3_an_old_copy_in_the_place_of_a_pointer_is_not_what_answers(workshop: Path, pointer: str) -> None:
    (BASE / pointer).unlink(missing_ok=True)
    shutil.copytree(BASE / "step_000020", BASE / pointer)
    wanted = {"latest": 30, "best": 20}[pointer]  # what best means is the step that it is a copy of
    assert find_checkpoint(BASE / pointer, say=pytest.fail).step == wanted
    assert f"{pointer} is a folder" in positron("verify", "runs/base").out
    RunFolder(BASE).point(pointer, 25)
    assert os.readlink(BASE / pointer) == "step_000025" and not (BASE / "superseded").exists()


def test_F3_nothing_that_is_in_no_step_is_lost_with_a_pointers_folder(workshop: Path) -> None:
    run, pointer = RunFolder(BASE), BASE / "latest"

    def replaced_by(make: Callable[[], object]) -> dict[str, str]:
        shutil.rmtree(BASE / "superseded", ignore_errors=True)
        pointer.unlink()
        make()
        before = digests(pointer) if pointer.is_dir() else {}
        run.point("latest", 30)
        assert os.readlink(pointer) == "step_000030"
        if not before:
            return {"": (BASE / "superseded/001/latest").read_text()}
        assert digests(BASE / "superseded/001/latest") == before
        return before

    def changed() -> None:
        shutil.copytree(BASE / "step_000020", pointer)
        (pointer / "notes.txt").write_bytes(HALF)

    def of_a_damaged_step() -> None:
        shutil.copytree(BASE / "step_000012", pointer)
        (BASE / "step_000012/model.safetensors").write_bytes(b"damaged")

    def of_another_run() -> None:
        shutil.copytree(BASE / "step_000020", pointer)
        ckpt.drop_training(pointer)
        (pointer / "generation_config.json").write_text("{}")
        ckpt.write_manifest(pointer)

    assert "notes.txt" in replaced_by(changed)
    assert "training/state.safetensors" in replaced_by(of_a_damaged_step)
    assert "generation_config.json" in replaced_by(of_another_run)
    assert replaced_by(lambda: pointer.write_text("my favourite is step 12")) == {"": "my favourite is step 12"}


def test_F3_a_pointers_folder_alone_is_a_model(workshop: Path) -> None:
    shutil.copytree(BASE / "latest", "sent/latest")
    assert find_checkpoint("sent/latest", say=pytest.fail).config == find_checkpoint(BASE).config


# --- F4: a full disk ---------------------------------------------------------------------------------------------------------------------


def filled(workshop: Path) -> None:
    """A run with something to prune and without a lock file."""
    assert positron("train", "--out_dir", "runs/base", "--resume_from_step", "25").code == 0
    (BASE / ".lock").unlink()


def assert_pruned() -> None:
    positron("runs", "prune", "--keep", "2", "--yes").ok()
    assert not (BASE / "superseded/001").exists() and RunFolder(BASE).steps() == [12, 25, 30]
    assert not list(BASE.glob(".tmp-*")) and find_checkpoint(BASE / "latest", say=pytest.fail).step == 30


def test_F4_pruning_writes_not_one_byte(workshop: Path) -> None:
    filled(workshop)
    with disk_with_room(0):
        assert_pruned()


@needs_fork
def test_F4_pruning_works_under_a_file_size_limit_of_nothing(workshop: Path) -> None:
    resource = pytest.importorskip("resource")
    filled(workshop)

    def act() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        assert_pruned()
        return 0

    assert forked(act) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_F4_pruning_needs_room_for_no_name_and_no_rename(workshop: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(workshop)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    monkeypatch.setattr(files.os, "replace", refuse)
    assert_pruned()


def test_F4_a_run_that_is_held_is_not_pruned_though_nothing_says_by_whom(workshop: Path) -> None:
    with held(BASE):
        result = positron("runs", "prune", "--yes", "--keep", "1")
    assert result.code == 1 and "another process is at work in this folder" in result.sentence and "kill" not in result.hint
    assert RunFolder(BASE).steps() == [0, 12, 20, 25, 30]


# --- F5: readers beside a writer ---------------------------------------------------------------------------------------------------------


class Writer:
    """Does to BASE, when its `moment` is passed for the first `times`, what a training beside does between two reads of another process."""

    def __init__(self, moment: str, act: Callable[[], None], times: int = 1) -> None:
        self.moment, self.act, self.left = moment, act, times

    def __call__(self, point: str) -> None:
        if point == self.moment and self.left:
            self.left -= 1
            self.act()


def next_step() -> None:
    """Save a step after the newest and drop the newest."""
    run = RunFolder(BASE)
    newest = run.steps()[-1]
    shutil.copytree(run.folder(newest), BASE / ".tmp-new")
    os.replace(BASE / ".tmp-new", run.folder(newest + 1))
    run.point("latest", newest + 1)
    files.discard(run.folder(newest))


@pytest.mark.parametrize("moment", ["manifest_read", "before_load"])
@pytest.mark.parametrize("spelling", ["runs/base", "runs/base/latest"])
@pytest.mark.parametrize("times", [1, 3])
def test_F5_a_step_that_is_dropped_while_it_is_read_is_replaced_by_the_next(workshop: Path, moment: str, spelling: str, times: int) -> None:
    with watched(Writer(moment, next_step, times)):
        checkpoint, model = find_model(spelling, say=pytest.fail)
    assert checkpoint.step == 30 + times and model.config == checkpoint.config


@pytest.mark.parametrize("moment", ["manifest_read", "before_load"])
@pytest.mark.parametrize(
    "words",
    [
        ("export", "--ckpt", "runs/base", "--format", "hf", "--out", "out"),
        ("generate", "--ckpt", "runs/base/latest", "--prompt", "One day", "--max_tokens", "3"),
        ("info", "--ckpt", "runs/base"),
        ("eval", "--ckpt", "runs/base", "--text", "text.txt"),
        ("chat", "--ckpt", "runs/base", "Hello"),
        ("chat", "Hello"),
        ("compare", "runs/base", "runs/base/step_000020", "--max_tokens", "2"),
        ("verify", "runs/base"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_F5_every_command_that_reads_takes_the_next_step(workshop: Path, words: tuple[str, ...], moment: str) -> None:
    with watched(Writer(moment, next_step)):
        result = positron(*words)
    assert result.code == 0 and not any(word in result.err for word in ("warning", "damaged", "falling back")), result.err


def test_F5_a_step_that_was_asked_for_and_is_dropped_is_named_in_one_sentence(workshop: Path) -> None:
    for moment, step in (("manifest_read", 30), ("before_load", 31)):
        with watched(Writer(moment, next_step)):
            result = positron("generate", "--ckpt", f"runs/base/step_0000{step}", "--prompt", "One day")
        assert result.code == 1 and f"step_0000{step}: no longer there" in result.sentence
        assert result.hint == "take its newest step: --ckpt runs/base"


def test_F5_a_training_state_that_is_dropped_while_it_is_checked_is_no_damage(workshop: Path) -> None:
    with watched(Writer("manifest_read", lambda: ckpt.drop_training(BASE / "step_000030"))):
        assert find_checkpoint(BASE, say=pytest.fail).has_training is False
    with watched(Writer("before_load", lambda: ckpt.drop_training(BASE / "step_000012"))):
        result = positron("verify", "runs/base", "--json")
    assert result.code == 0 and json.loads(result.out)["problems"] == []


def test_F5_a_damaged_step_is_no_dropped_one(workshop: Path) -> None:
    (BASE / "step_000030/model.safetensors").write_bytes(b"damaged")
    said: list[str] = []
    assert find_checkpoint(BASE, say=said.append).step == 25 and len(said) == 1
    with pytest.raises(PositronError, match="bytes, the manifest says") as caught:
        find_model("runs/base/step_000030")
    assert not isinstance(caught.value, DroppedError)


def test_F5_a_reader_gives_up_in_the_end(workshop: Path) -> None:
    found = 0

    def read(checkpoint: ckpt.Checkpoint) -> None:
        nonlocal found
        found += 1
        next_step()
        raise PositronError("gone", "")

    with pytest.raises(DroppedError):
        read_found(lambda: find_checkpoint(BASE), read)
    assert found == 100


def test_F5_readers_beside_a_training_that_saves_every_step_all_succeed(workshop: Path) -> None:
    words = ("--threads", "1", "--save_every", "1", "--eval_every", "1000", "--milestones", "2,4,8,16")
    from helpers.runs import TINY

    writer = spawn("train", *TINY, *words, "--out_dir", "runs/busy")
    try:
        wait_for(lambda: len(RunFolder(Path("runs/busy")).steps()) > 2, 300)
        for n in range(4):
            for reader in (
                ("export", "--ckpt", "runs/busy", "--format", "hf", "--out", f"out/{n}"),
                ("runs", "--json"),
                ("verify", "runs/busy"),
                ("generate", "--ckpt", "runs/busy/latest", "--prompt", "One day", "--max_tokens", "2"),
                ("report", "--run", "runs/busy"),
            ):
                result = positron(*reader)
                assert result.code == 0 and "damaged" not in result.err, (reader, result.err)
            assert ckpt.open_checkpoint(Path(f"out/{n}")).config
        assert writer.poll() is None, "the training ended before the readers did"
    finally:
        writer.send_signal(signal.SIGTERM)
        _, said = writer.communicate()
    assert writer.returncode == 143, said


# --- F6: what is no file -----------------------------------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("a pipe"))
    path.symlink_to("a pipe")


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def endless(path: Path) -> None:
    with open(path, "wb") as handle:
        handle.truncate(1 << 40)  # takes no room


ALONE = ("--threads", "1")  # the threads of a pool do not come with a fork, and are waited for
NO_FILES = [pipe, link_to_pipe, link_to_device, endless]


def code_of(*words: str) -> int:
    """The exit code of a command that is killed if it waits, and may take 2 GB of memory."""
    import resource

    def act() -> int:
        signal.alarm(120)
        used = (
            int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 8 << 30
        )
        resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), used + (2 << 30)))
        result = positron(*words)
        assert "unexpected" not in result.err and "Traceback" not in result.err, result.err
        return result.code

    return forked(act)


@needs_fork
@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
def test_F6_a_record_that_is_no_file_is_refused_at_once(workshop: Path, make: Callable[[Path], None]) -> None:
    (BASE / "run.json").unlink()
    make(BASE / "run.json")
    for code, words in (
        (0, ()),
        (0, ("runs",)),
        (1, ("verify", "runs/base")),
        (1, ("report", "--run", "runs/base")),
        (1, ("train", "--out_dir", "runs/base")),
        (1, ("runs", "prune", "--yes", "--run", "runs/base")),
        (0, ("generate", "--ckpt", "runs/base", "--prompt", "a", "--max_tokens", "2", *ALONE)),
    ):
        assert code_of(*words) == code, words
    assert os.path.lexists(BASE / "run.json") and RunFolder(BASE).steps() == [0, 12, 20, 25, 30]


@needs_fork
@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("log", LOGS)
def test_F6_a_log_that_is_no_file_is_refused_at_once(workshop: Path, log: str, make: Callable[[Path], None]) -> None:
    (BASE / log).unlink(missing_ok=True)
    make(BASE / log)
    for words in (("verify", "runs/base"), ("train", "--out_dir", "runs/base", "--max_steps", "32"), ("report", "--run", "runs/base"), ()):
        assert code_of(*words) in (0, 1), words
    with pytest.raises(PositronError, match=r"a pipe|a device|at most"):
        files.read_lines(BASE / log)
    with pytest.raises(PositronError, match=log):
        files.own_lines(BASE / log)


@needs_fork
@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", [*sorted(ckpt.NEEDED), "manifest.json", "training/state.json", "training/state.safetensors"])
def test_F6_a_file_of_a_step_that_is_none_makes_the_step_before_answer(workshop: Path, name: str, make: Callable[[Path], None]) -> None:
    path = BASE / "step_000030" / name
    path.unlink()
    make(path)
    assert code_of("generate", "--ckpt", "runs/base", "--prompt", "a", "--max_tokens", "2", *ALONE) == 0
    assert code_of("generate", "--ckpt", "runs/base/step_000030", "--prompt", "a", *ALONE) == 1
    assert code_of("verify", "runs/base") == 1


@needs_fork
@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
def test_F6_what_is_no_file_in_the_cache_or_as_a_tokenizer_is_not_waited_for(workshop: Path, make: Callable[[Path], None]) -> None:
    cache = Path("data/cache")
    folder = next(path for path in cache.iterdir() if path.is_dir())
    for path in (cache / "index.json", folder / "report.json", folder / "train.tokens", cache / ".lock", Path("spm2.model")):
        path.unlink(missing_ok=True)
        path.with_name("a pipe").unlink(missing_ok=True)
        make(path)
        tokenizer = str(path) if path.suffix == ".model" else "spm.model"
        assert code_of("prepare", "--dataset", "text.txt", "--tokenizer_path", tokenizer) in (0, 1), path
        if path.name == ".lock" or path.suffix == ".model":
            path.unlink()


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_F6_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not(tmp_path: Path, limit: int) -> None:
    from positron_mini.own_files import read_small

    path = tmp_path / "file"
    path.write_bytes(b"x" * limit)
    assert read_small(path, limit) == b"x" * limit
    path.write_bytes(b"x" * (limit + 1))
    with pytest.raises(OSError, match=f"{limit + 1} bytes; at most {limit} are read"):
        read_small(path, limit)
