"""Laws of preparation: what is written, when nothing is written, and that it is the same every time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.runs import wait_for
from positron_mini.errors import DataError, DiskFullError, PositronError, TokenizerError
from positron_mini.text import prepare
from positron_mini.text.corpus.reading import ReadStats
from positron_mini.text.corpus.report import Progress, first_sentence
from positron_mini.text.prepare import Prepared, parts, prepare_corpus, report_lines, scan
from positron_mini.text.tokenizer import Tokenizer, train_tokenizer, words
from positron_mini.text.tokens import TokenFile

SEP = "\n<|endoftext|>\n"
NAMES = ["Lily", "Tom", "Max", "Anna", "Ben", "Mia"]
THINGS = ["cake", "ball", "dog", "boat", "hat", "tree", "bird"]
STORIES = [f"{name} had a {thing} {n}.\nIt was very big, said {name}!" for n, name in enumerate(NAMES * 5) for thing in THINGS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "spm.model"
    train_tokenizer(STORIES, 330).save(path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text" / "stories.txt"
    path.parent.mkdir()
    path.write_text(SEP.join(STORIES))
    return path


def run(source: Path, model: Path | None, said: list[str] | None = None, **options: object) -> Prepared:
    settings: dict[str, object] = {"vocab_size": None, "cache_dir": source.parent.parent / "cache", "workers": 1, **options}
    return prepare_corpus(source, tokenizer_path=model, say=(said if said is not None else []).append, **settings)  # type: ignore[arg-type]


def decoded(tokens: TokenFile, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(tokens.ids[start:end].tolist()) for start, end in tokens.documents()]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_every_story_stands_once_between_bos_and_eos_in_reading_order(source: Path, model: Path) -> None:
    done = run(source, model)
    train, validation = decoded(done.train, done.tokenizer), decoded(done.validation, done.tokenizer)
    assert sorted(train + validation) == sorted(STORIES)
    assert train == [story for story in STORIES if story in set(train)]
    naive = [done.tokenizer.encode_document(story) for story in train]
    assert done.train.ids.tolist() == [token for ids in naive for token in ids]
    TokenFile.open(done.folder / "train.tokens", expected_fingerprint=done.tokenizer.fingerprint, verify=True)
    TokenFile.open(done.folder / "validation.tokens", expected_fingerprint=done.tokenizer.fingerprint, verify=True)


def test_D4_the_report_counts_what_was_planted(source: Path, model: Path) -> None:
    text = SEP.join([*STORIES, STORIES[3], STORIES[4], STORIES[5].upper(), "", "\u2581café\r\nau lait"])
    source.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\xff\0")
    done = run(source, model)
    report, kept = done.report, len(STORIES) + 2
    assert (report["stories"], report["train_stories"] + report["validation_stories"]) == (kept, kept)
    assert (report["duplicates"], report["variants"], report["reading"]["empty"]) == (2, 1, 1)
    assert report["reading"]["bad_characters"] == {"bom": 1, "carriage_returns": 1, "invalid_utf8": 1, "nul": 1, "lower_blocks": 1}
    stories = [*STORIES, STORIES[5].upper(), " café\nau lait\ufffd"]
    assert report["bytes"] == sum(len(story.encode()) for story in stories)
    assert (
        report["tokens"] == done.train.count + done.validation.count == sum(len(done.tokenizer.encode_document(story)) for story in stories)
    )
    assert report["bytes_per_token"] == pytest.approx(report["bytes"] / report["tokens"], abs=1e-4)
    assert report["longest_bytes"] == max(len(story.encode()) for story in stories)
    lines = "\n".join(report_lines(report))
    for part in (f"{kept:,} (", "2 exact copies, 1 empty", "1 U+2581 made spaces", "1 invalid UTF-8", "sample:      Lily had a", "time:"):
        assert part in lines


def test_a_second_run_reads_nothing_and_says_the_same(source: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(source, model)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the text was read again")

    monkeypatch.setattr(parts, "read_piece", never)
    began = time.process_time()
    second = run(source, model)
    assert time.process_time() - began < 1  # of computing; the first takes longer the longer the text is
    assert second.folder == first.folder
    assert {**second.report, "seconds": 0} == {**first.report, "seconds": 0}
    assert not any(line.startswith("time:") for line in report_lines(second.report))


def test_a_changed_text_is_prepared_anew_and_an_equal_one_is_not(source: Path, model: Path) -> None:
    first = run(source, model)
    before = (first.folder / "train.tokens").stat().st_mtime_ns
    os.utime(source, ns=(5, 5))
    assert (run(source, model).folder / "train.tokens").stat().st_mtime_ns == before
    source.write_text(SEP.join(STORIES).replace("Lily", "Lila"))
    os.utime(source, ns=(6, 6))
    second = run(source, model)
    source.write_text(SEP.join([*STORIES, "One more."]))
    os.utime(source, ns=(6, 6))
    assert len({first.folder, second.folder, run(source, model).folder}) == 3


def test_D9_repetition_and_the_size_of_batches_change_no_byte(source: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hashes(run(source, model, cache_dir=source.parent.parent / "one").folder)
    assert set(first) == {"train.tokens", "validation.tokens", "report.json"}
    assert hashes(run(source, model, cache_dir=source.parent.parent / "two", workers=2).folder) == first
    monkeypatch.setattr(parts, "_BATCH_CHARS", 100)
    monkeypatch.setattr(parts, "_LONG_CHARS", 7)
    assert hashes(run(source, model, cache_dir=source.parent.parent / "three").folder) == first


def test_a_long_story_encoded_in_parts_has_the_ids_of_the_whole(source: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_LONG_CHARS", 10)
    monkeypatch.setattr(words, "_STEP_BYTES", 10)
    long = "  Lily \n\n had  a   cake.\n " * 30 + "ababab" * 20 + " \u00a0 é 😀 end"
    source.write_text(SEP.join([long, "A dog.", "Tom."]), encoding="utf-8")
    done = run(source, model)
    assert done.tokenizer.encode_document(long) in [
        tokens.ids[start:end].tolist() for tokens in (done.train, done.validation) for start, end in tokens.documents()
    ]


def test_D4_a_validation_text_of_ones_own_is_used_whole_and_never_trained_on(source: Path, model: Path) -> None:
    own = source.parent / "own.txt"
    own.write_text(SEP.join(["A new story.", STORIES[7].upper(), "A new story."]))
    done = run(source, model, validation=own)
    assert decoded(done.validation, done.tokenizer) == ["A new story.", STORIES[7].upper()]
    assert decoded(done.train, done.tokenizer) == STORIES[:7] + STORIES[8:]
    assert done.report["shared_with_validation"] == 1
    assert done.content_fingerprint != run(source, model).content_fingerprint


# --- tokenizer ---------------------------------------------------------------------------------------------------------------------


def test_a_missing_tokenizer_is_trained_from_the_training_stories_saying_so(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "new" / "t.model"
    done = run(source, path, said, vocab_size=320)
    assert done.tokenizer.vocab_size == Tokenizer.load(path).vocab_size == 320
    assert "training 320 pieces" in said[0]
    assert f"saved as {path}" in said[1]
    assert train_tokenizer(decoded(done.train, done.tokenizer), 320).fingerprint == done.tokenizer.fingerprint


def test_the_vocabulary_follows_a_tokenizer_file_unless_its_size_is_asked_for(source: Path, model: Path) -> None:
    assert run(source, model).tokenizer.vocab_size == 330
    with pytest.raises(TokenizerError, match="has 330 pieces, --vocab_size asks for 400") as caught:
        run(source, model, vocab_size=400)
    assert "--vocab_size 330" in caught.value.hint


def test_the_default_path_names_the_size_and_the_file_is_said(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare.default_tokenizer_path(None) == prepare.default_tokenizer_path(16_000) == Path("tokenizer/spm.bpe.model")
    assert prepare.default_tokenizer_path(2_048) == Path("tokenizer/spm.bpe.2048.model")
    monkeypatch.chdir(tmp_path)
    Path("tokenizer").mkdir()
    Path("tokenizer/spm.bpe.model").write_bytes(model.read_bytes())
    said: list[str] = []
    assert run(source, None, said).tokenizer.vocab_size == 330
    assert said[0] == f"tokenizer: {Path('tokenizer/spm.bpe.model')} (330 pieces)"


def test_another_tokenizer_has_another_folder(source: Path, model: Path, tmp_path: Path) -> None:
    first, second = run(source, model), run(source, tmp_path / "t.model", vocab_size=320)
    assert first.content_fingerprint == second.content_fingerprint
    assert first.folder != second.folder
    assert TokenFile.open(first.folder / "train.tokens").fingerprint == first.tokenizer.fingerprint


# --- refusals and faults -----------------------------------------------------------------------------------------------------------

REFUSED = {
    "empty": ("", "is empty", DataError),
    "one story": ("A story.\nOf two lines.", "only one story was found", DataError),
    "one story twice": ("A story.\n\na  story.", "only one story, 2 times", DataError),
    "white space": (" \n\n \n", "no story was found", DataError),
    "too little text for the vocabulary": (SEP.join(STORIES), "16,000 pieces is too large", TokenizerError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_D1_a_text_that_cannot_be_used_leaves_nothing_behind(source: Path, tmp_path: Path, name: str) -> None:
    text, message, kind = REFUSED[name]
    source.write_text(text)
    before = everything_below(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        run(source, tmp_path / "tokenizer" / "t.model")
    assert caught.value.hint
    assert everything_below(tmp_path) == before


def test_nothing_is_written_beside_the_text_of_the_user(source: Path, model: Path) -> None:
    run(source.parent, model)
    assert everything_below(source.parent) == ["stories.txt"]
    assert source.read_text() == SEP.join(STORIES)


def test_D7_a_damaged_cache_is_prepared_anew_saying_so(source: Path, model: Path) -> None:
    first = run(source, model)
    whole = hashes(first.folder)
    with open(first.folder / "train.tokens", "r+b") as handle:
        handle.truncate(300)
    said: list[str] = []
    assert hashes(run(source, model, said).folder) == whole
    assert [line for line in said if "cut off" in line and "anew" in line] == said


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 1, "sources": {"x": 3}}', '{"format": 1, "sources": 7}'])
def test_a_damaged_memo_only_costs_time(source: Path, model: Path, damage: str) -> None:
    first = run(source, model)
    (first.folder.parent / "index.json").write_text(damage)
    assert run(source, model).folder == first.folder


@pytest.mark.parametrize("change", [STORIES[::-1], [*STORIES, "Late."], STORIES[1:]])
def test_D9_a_text_that_changes_meanwhile_is_noticed_and_leaves_no_folder(
    source: Path, model: Path, monkeypatch: pytest.MonkeyPatch, change: list[str]
) -> None:
    documents = parts.routed

    def overwrite(*arguments: object) -> object:
        source.write_text(SEP.join(change))
        return documents(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(parts, "routed", overwrite)  # what the second pass reads
    with pytest.raises(DataError, match="changed while"):
        run(source, model)
    assert everything_below(source.parent.parent / "cache") == [".lock"]


def test_D9_a_full_disk_leaves_no_folder(source: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "before_fsync:2:raise")
    monkeypatch.setattr("positron_mini.files._passed", {})
    with pytest.raises(DiskFullError):
        run(source, model)
    assert everything_below(source.parent.parent / "cache") == [".lock"]


SCRIPT = """
import sys
from pathlib import Path
from positron_mini.text.prepare import prepare_corpus
prepare_corpus(Path(sys.argv[1]), tokenizer_path=Path(sys.argv[2]), vocab_size=None, cache_dir=Path(sys.argv[3]), workers=1, say=print)
"""


def test_D9_a_killed_preparation_gives_the_bytes_of_a_clean_one_when_repeated(source: Path, model: Path, tmp_path: Path) -> None:
    whole = hashes(run(source, model, cache_dir=tmp_path / "clean").folder)
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", SCRIPT, str(source), str(model), str(cache)]
    package = str(Path(prepare.__file__).parents[2])
    killed = subprocess.run(command, env={**os.environ, "FAULT": "before_rename:1", "PYTHONPATH": package}, check=False)
    assert killed.returncode == -9
    assert [path for path in cache.iterdir() if path.name.startswith(".tmp-")]
    done = run(source, model)
    assert hashes(done.folder) == whole
    assert not list(cache.glob(".tmp-*"))


# --- many parts --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 3,000 bytes are a part."""
    monkeypatch.setattr(parts, "PART_BYTES", 3_000)
    monkeypatch.setattr(scan, "PART_BYTES", 3_000)


def test_D9_parts_and_processes_change_no_byte(source: Path, model: Path, request: pytest.FixtureRequest) -> None:
    source.write_text(SEP.join([*STORIES[:100], STORIES[2], "", *STORIES[100:], STORIES[150].upper(), STORIES[7]]))
    whole = hashes(run(source, model, cache_dir=source.parent.parent / "whole").folder)
    request.getfixturevalue("small_parts")
    for workers in (1, 2):
        cache = source.parent.parent / f"by {workers}"
        done = run(source, model, cache_dir=cache, workers=workers)
        assert hashes(done.folder) == whole
        assert sorted(path.name for path in cache.iterdir()) == sorted([".lock", "index.json", done.folder.name])
    assert done.report["duplicates"] == 2 and done.report["reading"]["empty"] == 1


def test_a_folder_and_a_validation_text_are_cut_into_parts_too(source: Path, model: Path, request: pytest.FixtureRequest) -> None:
    for number in range(0, len(STORIES), 30):
        (source.parent / f"{number:03d}.txt").write_text(SEP.join(STORIES[number : number + 30]))
    source.unlink()
    (source.parent / "note.md").touch()
    own = source.parent.parent / "own.txt"
    own.write_text(SEP.join([f"A new story, number {n}." for n in range(200)] + STORIES[:5]))
    whole = hashes(run(source.parent, model, validation=own, cache_dir=source.parent.parent / "whole").folder)
    request.getfixturevalue("small_parts")
    done = run(source.parent, model, validation=own, workers=2)
    assert hashes(done.folder) == whole
    assert done.report["shared_with_validation"] == 5 and done.report["reading"]["other_files"] == 1


def test_a_tokenizer_trained_from_parts_is_that_of_the_whole(source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole = run(source, tmp_path / "one.model", vocab_size=320)
    request.getfixturevalue("small_parts")
    done = run(source, tmp_path / "two.model", vocab_size=320, cache_dir=tmp_path / "other")
    assert done.tokenizer.fingerprint == whole.tokenizer.fingerprint and hashes(done.folder) == hashes(whole.folder)


PARTS_SCRIPT = SCRIPT.replace("from positron_mini.text.prepare import", "from positron_mini.text.prepare import parts, scan,").replace(
    "prepare_corpus(Path", "parts.PART_BYTES = scan.PART_BYTES = 3_000\nprepare_corpus(Path"
)


@pytest.mark.parametrize("fault", ["before_fsync:3", "after_replace:7", "before_replace:12", "after_replace:16", "before_rename:1"])
def test_D9_what_was_done_before_a_kill_is_not_done_again(
    source: Path, model: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    whole = hashes(run(source, model, cache_dir=tmp_path / "clean").folder)
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", PARTS_SCRIPT, str(source), str(model), str(cache)]
    package = str(Path(prepare.__file__).parents[2])
    assert subprocess.run(command, env={**os.environ, "FAULT": fault, "PYTHONPATH": package}, check=False).returncode == -9
    (unfinished,) = cache.glob("unfinished-*")
    done = len(list(unfinished.glob("*/0*.json")))
    read: list[object] = []
    read_piece = parts.read_piece
    monkeypatch.setattr(parts, "read_piece", lambda *given: read.append(given) or read_piece(*given))
    said: list[str] = []
    assert hashes(run(source, model, said).folder) == whole
    n_parts, n_checks = len(parts.list_parts(source, ReadStats())[0]), 1  # the length is checked on the first part
    assert n_parts > 3 and len(read) == 2 * n_parts - done + n_checks
    assert [line for line in said if "were done before, going on from there" in line] or not done
    assert not list(cache.glob("unfinished-*")) and not list(cache.glob(".tmp-*"))


def test_a_worker_that_dies_stops_the_preparation_which_goes_on_later(
    source: Path, model: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hashes(run(source, model, cache_dir=tmp_path / "clean").folder)
    monkeypatch.setenv("FAULT", "after_replace:3:exit")  # workers inherit it
    monkeypatch.setattr("positron_mini.files._passed", {"after_replace": 10**6})
    with pytest.raises(PositronError, match="a worker process ended with code 137") as caught:
        run(source, model, workers=2)
    assert "--workers 1" in caught.value.hint
    monkeypatch.delenv("FAULT")
    assert list((tmp_path / "cache").glob("unfinished-*/scan/0*.json"))
    assert hashes(run(source, model, workers=2).folder) == whole


def test_an_error_in_a_worker_is_that_of_the_work(source: Path, model: Path, small_parts: None) -> None:
    lines = [json.dumps({"text": story}) for story in STORIES]
    lines[180] = '{"title": "no text"}'
    path = source.with_suffix(".jsonl")
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 181: no field"):
        run(path, model, workers=2)


def test_unfinished_parts_of_a_text_that_changed_are_removed_and_others_stay(
    source: Path, model: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    other = source.parent / "other.txt"
    other.write_text(SEP.join(story.replace("Lily", "Lila") for story in STORIES))
    with monkeypatch.context() as patch:
        patch.setattr(scan, "split_documents", stop)
        for path in (source, other):
            with pytest.raises(KeyboardInterrupt):
                run(path, model)
    left = {folder.name: json.loads((folder / "about.json").read_text())["text"] for folder in (tmp_path / "cache").glob("unfinished-*")}
    assert sorted(left.values()) == [str(other), str(source)]
    source.write_text(SEP.join(STORIES[1:]))
    run(source, model)
    (kept,) = (tmp_path / "cache").glob("unfinished-*")
    assert left[kept.name] == str(other)
    run(other, model)
    assert not list((tmp_path / "cache").glob("unfinished-*"))


def test_no_worker_outlives_a_preparation_that_is_killed(source: Path, model: Path, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    source.write_text(SEP.join(f"{story} {n}" for n in range(300) for story in STORIES))
    script = PARTS_SCRIPT.replace("3_000", "1_000_000").replace("workers=1", "workers=2")
    command = [sys.executable, "-c", script, str(source), str(model), str(tmp_path / "cache")]
    process = psutil.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[2])})
    wait_for(lambda: len(process.children()) == 2 and any((tmp_path / "cache").glob("unfinished-*/scan/*")))
    children = process.children()
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) == 2 and not alive


# --- report ------------------------------------------------------------------------------------------------------------------------


def test_progress_is_said_every_five_seconds_with_speed_and_time_left() -> None:
    times = iter([0.0, 1.0, 5.0, 6.0, 10.0])
    said: list[str] = []
    progress = Progress(said.append, "reading", 100_000_000, clock=lambda: next(times))
    for done in (1_000_000, 10_000_000, 20_000_000, 50_000_000):
        progress.update(done)
    assert said == ["reading: 10 of 100 MB (10 %), 2.0 MB/s, 45 s left", "reading: 50 of 100 MB (50 %), 5.0 MB/s, 10 s left"]


def test_a_sample_is_one_short_line() -> None:
    assert first_sentence('He said\n"No!" Then 2.5 more.') == 'He said "No!"'
    assert first_sentence("word " * 99) == ("word " * 32)[:159] + "…"


@pytest.mark.skipif("POSITRON_TEST_TEXT" not in os.environ, reason="POSITRON_TEST_TEXT names no folder with real stories")
def test_real_stories_round_trip(tmp_path: Path) -> None:
    text = Path(os.environ["POSITRON_TEST_TEXT"], "tinystories-valid.txt")
    done = prepare_corpus(text, tokenizer_path=tmp_path / "t.model", vocab_size=2_048, cache_dir=tmp_path / "cache", say=lambda _: None)
    stories = decoded(done.train, done.tokenizer) + decoded(done.validation, done.tokenizer)
    assert sorted(stories) == sorted(
        story.strip("\n") for story in text.read_text(encoding="utf-8").split("<|endoftext|>") if story.strip()
    )
    assert done.report["validation_stories"] == pytest.approx(100, abs=45)
    assert int(np.max(done.train.ids)) < 2_048
