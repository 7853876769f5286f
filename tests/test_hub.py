"""The hub's promises, kept by a server that breaks all of them: what is not whole and right never becomes data."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.hub import COMMIT, FakeHub
from positron_mini.errors import DataError, DiskFullError, PositronError, UsageError
from positron_mini.text.corpus import download, listing
from positron_mini.text.corpus.clean import CleanStats
from positron_mini.text.corpus.hub import (
    HubError,
    HubUnreachableError,
    Patience,
    fetch_dataset,
    hub_reachable,
    resolve_source,
    write_dataset,
    write_tinystories,
)

REPO = "roneneldan/TinyStories"
TRAIN, VALID = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
STORIES = [f'Once there was a cat called Tom {number}. Tom said, "Hello!" and ran home.' for number in range(400)]
TRAIN_BYTES = "\n<|endoftext|>\n".join(STORIES).encode()
VALID_BYTES = b"A dog sat.\n<|endoftext|>\n" + STORIES[3].encode() + b"\n<|endoftext|>\n"


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def patience(waits: list[float]) -> Patience:
    return Patience(connect_s=2.0, read_s=0.3, sleep=waits.append)


@pytest.fixture
def hub(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    fake_hub.add(REPO, {TRAIN: TRAIN_BYTES, VALID: VALID_BYTES})
    return fake_hub


def said(_: str) -> None:
    """Nothing: most tests look at files."""


def fetch(folder: Path, patience: Patience, **options: Any) -> Path:
    found = listing.list_files(REPO, patience=patience)
    return download.fetch_file(found, found.file(TRAIN), folder, patience=patience, say=options.pop("say", said), **options)


def test_D8_a_download_cut_five_times_is_whole_in_the_end(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    hub.next_data.extend(["cut:1000", "cut:2000", "cut:1", "cut:0", "cut:3000"])
    path = fetch(tmp_path, patience)
    assert path == tmp_path / TRAIN
    assert path.read_bytes() == TRAIN_BYTES
    assert [request.range for request in hub.data_requests] == [None] + [
        f"bytes={start}-{len(TRAIN_BYTES) - 1}" for start in (1000, 3000, 3001, 3001, 6001)
    ]
    assert sum(request.sent_bytes for request in hub.data_requests) == len(TRAIN_BYTES)
    assert not list(tmp_path.glob("*.part"))


NO_FILE = ["html", "html_of_size", "silent_html", "404", "gated", "503", "403"]


@pytest.mark.parametrize(
    ("wrong", "first_bytes"),
    [(wrong, None) for wrong in (*NO_FILE, "short:500", "short:1", "long:7", "flip")]
    + [(wrong, 4000) for wrong in (*NO_FILE, "wrong_range")],
)
def test_D8_what_is_not_the_file_never_becomes_data(
    hub: FakeHub, patience: Patience, tmp_path: Path, wrong: str, first_bytes: int | None
) -> None:
    hub.always_data = wrong
    with pytest.raises(HubError) as caught:
        fetch(tmp_path, patience, first_bytes=first_bytes)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert not (tmp_path / TRAIN).exists()
    assert all(TRAIN_BYTES.startswith(part.read_bytes()) for part in tmp_path.glob("*.part"))


@pytest.mark.parametrize("wrong", ["html", "silent_html", "short:500", "wrong_range", "flip", "503", "hang", "408"])
def test_D8_one_wrong_answer_does_no_harm(hub: FakeHub, patience: Patience, tmp_path: Path, wrong: str) -> None:
    hub.next_data.extend(["cut:5000", wrong])
    assert fetch(tmp_path, patience).read_bytes() == TRAIN_BYTES


def test_a_server_without_ranges_still_gives_the_whole_file(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    hub.next_data.extend(["cut:5000", "no_range"])
    assert fetch(tmp_path, patience).read_bytes() == TRAIN_BYTES
    hub.next_data.append("no_range")
    assert fetch(tmp_path / "b", patience, first_bytes=3000).read_bytes() == TRAIN_BYTES[:3000]


def test_a_download_with_progress_may_break_as_often_as_it_likes(
    hub: FakeHub, patience: Patience, waits: list[float], tmp_path: Path
) -> None:
    hub.next_data.extend(["cut:100"] * 20)
    assert fetch(tmp_path, patience).read_bytes() == TRAIN_BYTES
    assert waits == [1] * 20


def test_503_is_asked_again_with_growing_waits_and_as_long_as_the_server_says(
    hub: FakeHub, patience: Patience, waits: list[float], tmp_path: Path
) -> None:
    hub.next_listing.extend(["503"])
    hub.next_data.extend(["503", "503", "503:9", "429:3600"])
    fetch(tmp_path, patience)
    assert waits == [1, 1, 2, 9, 30]


def test_503_for_ever_ends_after_six_attempts(hub: FakeHub, patience: Patience, waits: list[float], tmp_path: Path) -> None:
    hub.always_data = "503"
    with pytest.raises(HubError, match="503"):
        fetch(tmp_path, patience)
    assert len(hub.data_requests) == 6
    assert waits == [1, 2, 4, 8, 16]
    hub.always_listing = "503"
    with pytest.raises(HubUnreachableError, match=r"503.*6 times"):
        listing.list_files(REPO, patience=patience)


def test_D8_an_interrupted_download_goes_on_where_it_stopped_in_the_next_call(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    hub.next_data.append("cut:20000")
    hub.always_data = "503"
    with pytest.raises(HubError) as caught:
        fetch(tmp_path, patience)
    assert "20 kB of" in caught.value.hint.replace("20.0", "20")
    hub.always_data = ""
    hub.requests.clear()
    assert fetch(tmp_path, patience).read_bytes() == TRAIN_BYTES
    assert [request.range for request in hub.data_requests] == [f"bytes=20000-{len(TRAIN_BYTES) - 1}"]


def test_D8_a_complete_file_is_not_fetched_again_and_a_damaged_one_is(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    path = fetch(tmp_path, patience)
    fetch(tmp_path, patience)
    assert len(hub.data_requests) == 1
    path.write_bytes(b"X" + TRAIN_BYTES[1:])
    assert fetch(tmp_path, patience).read_bytes() == TRAIN_BYTES
    assert len(hub.data_requests) == 2


def test_small_files_without_lfs_are_checked_by_their_git_hash(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    hub.add(REPO, {TRAIN: TRAIN_BYTES}, uses_lfs=False)
    hub.next_data.extend(["flip"])
    lines: list[str] = []
    assert fetch(tmp_path, patience, say=lines.append).read_bytes() == TRAIN_BYTES
    assert any("damaged" in line for line in lines)


def test_a_range_is_the_beginning_and_the_whole_file_goes_on_from_it(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    part = fetch(tmp_path, patience, first_bytes=9000)
    assert part.read_bytes() == TRAIN_BYTES[:9000]
    assert part.name.endswith(".part")
    assert fetch(tmp_path, patience).read_bytes() == TRAIN_BYTES
    assert [request.range for request in hub.data_requests] == ["bytes=0-8999", f"bytes=9000-{len(TRAIN_BYTES) - 1}"]


def test_the_token_goes_to_the_hub_and_not_to_the_storage(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    fetch(tmp_path, patience)
    to_hub = {request.authorization for request in hub.requests if not request.path.startswith("/cdn/")}
    assert to_hub == {"Bearer hf_of_the_test"}
    assert {request.authorization for request in hub.data_requests} == {None}


def test_a_file_is_fetched_at_the_commit_of_the_listing(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    fetch(tmp_path, patience)
    assert f"/resolve/{COMMIT}/" in hub.requests[1].path


@pytest.mark.parametrize("trouble", ["offline variable", "refused", "hang", "html", "unknown host"])
def test_D8_no_hub_is_known_quickly_in_one_sentence_with_the_manual_way(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: str
) -> None:
    if trouble == "offline variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif trouble == "refused":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    elif trouble == "unknown host":  # a resolver that does not answer, as in a network without a way out
        monkeypatch.setattr(listing, "_get", lambda url, patience: time.sleep(60))
    else:
        hub.always_listing = trouble
    waits: list[float] = []
    begun = time.monotonic()
    with pytest.raises(HubUnreachableError) as caught:
        write_tinystories(tmp_path / "t.txt", say=said, patience=Patience(connect_s=0.3, sleep=waits.append))
    assert time.monotonic() - begun < 30 and waits == []  # asked once; the hub that hangs would do so for a minute
    assert "\n" not in caught.value.message
    for piece in (f"/datasets/{REPO}/resolve/main/{TRAIN}", VALID, str(tmp_path / "hub"), "browser"):
        assert piece in caught.value.hint
    assert not hub_reachable(0.3)
    assert not (tmp_path / "t.txt").exists()
    assert Patience().connect_s + 2 <= 10


def test_the_manual_way_works(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / TRAIN).write_bytes(TRAIN_BYTES)
    (tmp_path / "hub" / VALID).write_bytes(VALID_BYTES)
    assert write_tinystories(tmp_path / "tinystories.txt", say=said).documents == 399
    assert not hub.requests


def test_hub_reachable_says_yes_to_a_hub(hub: FakeHub) -> None:
    assert hub_reachable(2.0)


def test_a_wrong_endpoint_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "huggingface")
    with pytest.raises(UsageError, match="'huggingface'"):
        hub_reachable()


def test_tinystories_whole(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    lines: list[str] = []
    text = write_tinystories(tmp_path / "tinystories.txt", say=lines.append, patience=patience)
    assert text.text.read_text("utf-8").split("\n<|endoftext|>\n")[:-1] == [s for n, s in enumerate(STORIES) if n != 3]  # 3 is in valid
    assert text.valid is not None
    assert text.valid.read_text("utf-8") == f"A dog sat.\n<|endoftext|>\n{STORIES[3]}\n<|endoftext|>\n"
    assert (text.documents, text.licence, text.revision) == (399, "CDLA-Sharing-1.0", COMMIT)
    assert text.stats == CleanStats(stories=400, kept=399, repeated=1)
    assert "CDLA-Sharing-1.0" in lines[0]
    assert "to fetch: " in lines[1]
    assert json.loads((tmp_path / "tinystories.json").read_text())["source"] == f"{REPO}: {TRAIN}, {VALID}"


def test_the_beginning_of_tinystories_ends_with_a_whole_story(
    hub: FakeHub, patience: Patience, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("positron_mini.text.corpus.hub.READ_BYTES", 7)  # separators lie across blocks
    width = len(STORIES[0]) + len("\n<|endoftext|>\n")
    first_bytes = 5 * width + STORIES[5].index(" Tom said")  # cut after a sentence, but not after the story
    text = write_tinystories(tmp_path / "tinystories.txt", first_bytes=first_bytes, say=said, patience=patience)
    assert text.text.read_text("utf-8").split("\n<|endoftext|>\n")[:-1] == [STORIES[n] for n in (0, 1, 2, 4)]
    assert sum(request.sent_bytes for request in hub.data_requests) == first_bytes + len(VALID_BYTES)


def test_a_finished_text_is_returned_without_network_and_more_of_it_fetches_the_rest(
    hub: FakeHub, patience: Patience, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = write_tinystories(tmp_path / "tinystories.txt", first_bytes=3000, say=said, patience=patience)
    hub.requests.clear()
    assert write_tinystories(tmp_path / "tinystories.txt", first_bytes=3000, say=said, patience=patience) == first
    assert not hub.requests
    more = write_tinystories(tmp_path / "tinystories.txt", first_bytes=8000, say=said, patience=patience)
    assert [request.range for request in hub.data_requests] == ["bytes=3000-7999"]
    assert more.documents > first.documents
    whole = more.text.read_text()
    more.text.write_text("cut")
    assert write_tinystories(tmp_path / "tinystories.txt", first_bytes=8000, say=said, patience=patience) == more
    assert more.text.read_text() == whole


def test_F1_a_call_killed_before_its_note_was_written_knows_its_own_validation_text(
    hub: FakeHub, patience: Patience, tmp_path: Path
) -> None:
    whole = write_tinystories(tmp_path / "tinystories.txt", say=said, patience=patience)
    (tmp_path / "tinystories.json").unlink()
    assert write_tinystories(tmp_path / "tinystories.txt", say=said, patience=patience) == whole
    (tmp_path / "tinystories.json").unlink()
    assert whole.valid is not None
    whole.valid.write_text("mine")
    with pytest.raises(UsageError, match="would be overwritten"):
        write_tinystories(tmp_path / "tinystories.txt", say=said, patience=patience)
    assert whole.valid.read_text() == "mine"


@pytest.mark.parametrize("ending", [".part", ".lock"])
def test_F1_a_download_is_not_written_through_a_link(hub: FakeHub, patience: Patience, tmp_path: Path, ending: str) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    part = download._part_of(tmp_path, listing.list_files(REPO, patience=patience).file(TRAIN))
    part.with_suffix(ending).symlink_to(mine)
    with pytest.raises(PositronError, match="is a link"):
        fetch(tmp_path, patience)
    assert mine.read_text() == "mine"


def test_a_full_disk_is_said_before_anything_is_fetched(
    hub: FakeHub, patience: Patience, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    with pytest.raises(DiskFullError, match=r"10 kB are free|10.0 kB are free"):
        write_tinystories(tmp_path / "tinystories.txt", say=said, patience=patience)
    assert not hub.data_requests


def test_a_listing_cannot_name_a_file_outside_the_folder(hub: FakeHub, patience: Patience) -> None:
    hub.add("a/b", {"../evil.txt": b"x", "/etc/evil.txt": b"x", "c:evil.txt": b"x", "x\\evil.txt": b"x", "good.txt": b"x"})
    assert [entry.name for entry in listing.list_files("a/b", patience=patience).files] == ["good.txt"]


def parquet(columns: dict[str, list[Any]]) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def test_a_dataset_by_split_and_column(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    files = {
        "README.md": b"# x",
        "data/train-00001-of-00002.parquet": parquet({"story": ["c", "d"], "topic": ["t", "u"]}),
        "data/train-00000-of-00002.parquet": parquet({"story": ["a", None, "b"], "topic": ["r", "s", "t"]}),
        "data/test-00000-of-00001.parquet": parquet({"story": ["z"], "topic": ["y"]}),
    }
    hub.add("SimpleStories/SimpleStories", files, licence="mit")

    def read(spec: str, **options: Any) -> list[str]:
        return list(fetch_dataset(spec, tmp_path / "hub", say=said, patience=patience, **options))

    assert read("SimpleStories/SimpleStories", max_documents=2) == ["a", "b"]
    assert len(hub.data_requests) == 1
    assert read("SimpleStories/SimpleStories:train:story") == ["a", "b", "c", "d"]
    assert read("SimpleStories/SimpleStories:test:topic") == ["y"]
    with pytest.raises(HubError, match="no split 'dev'") as caught:
        read("SimpleStories/SimpleStories:dev")
    assert "test, train" in caught.value.message
    with pytest.raises(DataError, match=r"'tale'.*story, topic"):
        read("SimpleStories/SimpleStories:train:tale")
    text = write_dataset("SimpleStories/SimpleStories", tmp_path / "s.txt", say=said, patience=patience)
    assert text.text.read_text() == "a\n<|endoftext|>\nb\n<|endoftext|>\nc\n<|endoftext|>\nd\n<|endoftext|>\n"
    assert (text.licence, text.documents, text.revision) == ("mit", 4, COMMIT)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("stories.jsonl", b'{"text": "a b"}\n\n{"text": "c"}\n'),
        ("stories.jsonl.gz", gzip.compress(b'{"text": "a b"}\n{"text": "c"}\n', mtime=0)),
        ("stories.txt", b"a b\n<|endoftext|>\nc\n"),
        ("stories.txt.gz", gzip.compress(b"a b\n<|endoftext|>\nc", mtime=0)),
        ("stories.parquet", parquet({"text": ["a b", "c"]})),
    ],
)
def test_every_kind_of_data_file_is_read(hub: FakeHub, patience: Patience, tmp_path: Path, name: str, data: bytes) -> None:
    hub.add("me/mine", {"README.md": b"", "LICENSE.txt": b"no data", name: data}, uses_lfs=False)
    assert list(fetch_dataset("me/mine", tmp_path, say=said, patience=patience)) == ["a b", "c"]


def test_a_dataset_without_data_files_is_read_from_the_hubs_conversion(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    hub.add("me/script", {"script.py": b"pass"})
    converted = {f"{part}/train/0000.parquet": parquet({"text": [part]}) for part in ("default", "other")}
    hub.add("me/script", converted, revision="refs/convert/parquet")
    with pytest.raises(HubError, match="several parts: default, other") as caught:
        fetch_dataset("me/script:train:text", tmp_path, say=said, patience=patience)
    assert caught.value.hint == "name one: --dataset me/script:default/train:text"
    assert list(fetch_dataset("me/script:other/train:text", tmp_path, say=said, patience=patience)) == ["other"]


def test_the_clean_tinystories_are_split_by_rows(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    rows = [f"s{number}" for number in range(20_003)]
    hub.add("karpathy/tinystories-gpt4-clean", {"tinystories_gpt4_clean.parquet": parquet({"text": rows})})

    def read(spec: str) -> list[str]:
        return list(fetch_dataset(spec, tmp_path, say=said, patience=patience))

    assert read("tinystories-clean") == ["s20000", "s20001", "s20002"]
    assert read("karpathy/tinystories-gpt4-clean:validation") == rows[10_000:20_000]
    assert read("tinystories-clean:test") == rows[:10_000]


def test_a_missing_dataset_is_said(hub: FakeHub, patience: Patience, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="404"):
        fetch_dataset("no/such", tmp_path, say=said, patience=patience)


def test_an_existing_path_wins_over_every_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_source("tinystories").kind == "tinystories"
    assert resolve_source("owner/name:validation:story").split == "validation"
    assert resolve_source("owner/name").column == ""
    for name in ("tinystories", "owner/name", "owner/name:train"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
        assert resolve_source(name).path == Path(name)


@pytest.mark.parametrize("spec", ["data/storys.txt", "./nothing", "../up/none", "stories.jsonl", "a/b/c", "C:\\none.txt", "", "storys"])
def test_what_is_neither_file_nor_data_set_never_reaches_the_hub(spec: str) -> None:
    with pytest.raises(PositronError) as caught:
        resolve_source(spec)
    assert caught.value.hint
