"""Laws of getting a text: what a name means, that nothing is fetched or made twice, and that the user's own text is never written to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers.hub import FakeHub
from helpers.runs import SEPARATOR, listing, positron
from helpers.texts import documents_of
from positron_mini import storyworld
from positron_mini.errors import DataError, PositronError, UsageError
from positron_mini.text.corpus import sources
from positron_mini.text.corpus.note import generator_entropy
from positron_mini.text.corpus.sources import obtain

STORIES = [f'Once there was a cat called Tom {number}. Tom said, "Hello!" and ran home.' for number in range(40)]
HUB_STORIES = [f"{text} {'He was very happy and he slept well. ' * 5}The end." for text in STORIES]
REPO, TRAIN, VALID = "roneneldan/TinyStories", "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with one text in it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text(SEPARATOR.join(STORIES))
    return tmp_path


def unheard(line: str) -> None:
    """Whoever says something here fails."""
    raise AssertionError(line)


# --- a path -----------------------------------------------------------------------------------------------------------------------------


def test_a_path_is_used_as_it_lies(folder: Path) -> None:
    before = listing(folder)
    assert obtain("mine.txt", say=unheard) == Path("mine.txt")
    assert listing(folder) == before


def test_some_stories_of_a_path_are_a_text_of_their_own() -> None:
    said: list[str] = []
    assert obtain("mine.txt", stories=3, say=said.append) == Path("data/mine-3.txt")
    assert documents_of(Path("data/mine-3.txt")) == STORIES[:3] and said == ["data/mine-3.txt: 3 stories"]
    assert obtain("mine.txt", text_out=Path("all.txt"), say=said.append) == Path("all.txt") and documents_of(Path("all.txt")) == STORIES


def test_a_text_is_never_written_over_itself(folder: Path) -> None:
    Path("data").mkdir()
    Path("data/mine.txt").write_bytes(Path("mine.txt").read_bytes())
    obtain("data/mine.txt", stories=2, say=lambda _: None)
    for name in ("data/mine.txt", "./data/../data/mine.txt"):
        with pytest.raises(UsageError, match="would be overwritten") as caught:
            obtain("data/mine.txt", stories=2, text_out=Path(name), say=unheard)
        assert caught.value.hint.startswith("--text_out ")
    assert Path("data/mine.txt").read_bytes() == Path("mine.txt").read_bytes()


@pytest.mark.parametrize(("name", "kind"), [("gone.txt", DataError), ("nonsense", UsageError)])
def test_a_name_that_means_nothing_is_refused(folder: Path, name: str, kind: type[PositronError]) -> None:
    before = listing(folder)
    with pytest.raises(kind, match=name):
        obtain(name, say=unheard)
    assert listing(folder) == before


# --- the story world --------------------------------------------------------------------------------------------------------------------


def test_the_story_world_is_written_once_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    path = obtain("storyworld", stories=5, say=said.append)
    assert path == Path("data/storyworld.txt") and len(said) == 1
    assert said[0].startswith("data/storyworld.txt: 5 stories from the story world, seed 0; the generator's entropy is 0.")
    assert documents_of(path) == [storyworld.document(storyworld.story(0, index)) for index in range(5)]
    other = obtain("storyworld", stories=5, text_out=Path("there/tales.txt"), say=lambda _: None)
    assert other == Path("there/tales.txt") and other.read_bytes() == path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(storyworld, "write_corpus", unheard)
        before = listing(Path("data"))
        assert obtain("storyworld", stories=5, say=said.append) == path
        assert listing(Path("data")) == before and said[-1] == "data/storyworld.txt is already there: 5 stories"


@pytest.mark.parametrize("change", ["stories", "seed", "version", "cut short"])
def test_the_story_world_is_written_anew_when_it_would_be_another_text(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = obtain("storyworld", stories=3, say=lambda _: None)
    path.write_text("old")
    stories, seed = 3, 0
    if change == "stories":
        stories = 4
    elif change == "seed":
        seed = 1
    elif change == "version":
        monkeypatch.setattr(storyworld, "VERSION", storyworld.VERSION + 1)
    else:
        path.with_suffix(".json").unlink()  # it is written last: a killed process has left no note
    obtain("storyworld", stories=stories, seed=seed, say=lambda _: None)
    assert documents_of(path) == [storyworld.document(storyworld.story(seed, index)) for index in range(stories)]


def test_the_note_never_takes_the_place_of_the_text_or_of_a_file_of_the_user() -> None:
    with pytest.raises(UsageError, match=r"tales\.json"):
        obtain("storyworld", stories=2, text_out=Path("tales.json"), say=unheard)
    for content in ('{"my": 1}', "[1]", "not JSON"):
        Path("tales.json").write_text(content)
        with pytest.raises(UsageError, match=r"tales\.json: this is not a note"):
            obtain("storyworld", stories=2, text_out=Path("tales.txt"), say=unheard)
        assert Path("tales.json").read_text() == content and not Path("tales.txt").exists()


def test_the_entropy_of_the_generator_is_that_of_its_own_texts_only() -> None:
    tales = obtain("storyworld", stories=4, say=lambda _: None)
    assert generator_entropy(tales) == pytest.approx(storyworld.entropy_bits_per_byte(0, 4), abs=1e-5)
    for content in ("not JSON", "[1]", '{"corpus": "mine", "entropy_bits_per_byte": 1}'):
        Path("mine.json").write_text(content)
        assert generator_entropy(Path("mine.txt")) is None
    assert generator_entropy(Path("gone.txt")) is generator_entropy(Path("")) is generator_entropy(Path("mine.json")) is None


def test_without_a_number_the_story_world_has_its_usual_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "STORYWORLD_STORIES", 2)
    assert len(documents_of(obtain("storyworld", say=lambda _: None))) == 2


# --- a mix ------------------------------------------------------------------------------------------------------------------------------


def shares_of(texts: list[str], mine: set[str]) -> float:
    sizes = [len(text.encode()) for text in texts]
    return sum(size for text, size in zip(texts, sizes, strict=True) if text in mine) / sum(sizes)


def test_a_mix_has_the_shares_that_were_asked_for_from_its_beginning_on() -> None:
    others = [f"A much longer story, number {n}, which tells of a dog. {'The dog ran and ran. ' * (n % 7)}The end." for n in range(300)]
    Path("others.txt").write_text(SEPARATOR.join(others))
    said: list[str] = []
    path = obtain("mine.txt:0.2,others.txt:0.6", say=said.append)
    texts = documents_of(path)
    assert set(texts) <= {*STORIES, *others} and len(set(texts)) == len(texts)
    assert set(STORIES) <= set(texts)  # the smaller one goes in whole
    for part in (texts, texts[: len(texts) // 2], texts[: len(texts) // 4]):
        assert shares_of(part, set(STORIES)) == pytest.approx(0.25, abs=0.03)
    assert said[0] == "mixing 25% mine.txt, 75% others.txt" and f"{len(texts):,} stories" in said[1]
    few = documents_of(obtain("mine.txt:0.2,others.txt:0.6", stories=40, text_out=Path("few.txt"), say=said.append))
    assert few == texts[:40]


def test_a_mix_follows_from_the_texts_and_the_seed_alone(folder: Path) -> None:
    Path("others.txt").write_text(SEPARATOR.join(f"Another story {n}." for n in range(400)))
    first = obtain("mine.txt:1,others.txt:1", say=lambda _: None)
    again = obtain("mine.txt:1,others.txt:1", text_out=Path("again/mix.txt"), say=lambda _: None)
    assert first != again and first.read_bytes() == again.read_bytes()
    before = listing(Path("data"))
    assert obtain("mine.txt:1,others.txt:1", say=lambda _: None) == first and listing(Path("data")) == before
    other = documents_of(obtain("mine.txt:1,others.txt:1", seed=1, say=lambda _: None))
    assert set(other) != set(documents_of(first)) and len(other) == pytest.approx(len(documents_of(first)), rel=0.05)
    Path("others.txt").write_text(SEPARATOR.join(f"Another tale {n}." for n in range(400)))
    changed = obtain("mine.txt:1,others.txt:1", say=lambda _: None)
    assert changed == first and changed.read_bytes() != again.read_bytes()


def test_a_mix_may_hold_what_has_to_be_made_first() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "STORYWORLD_STORIES", 8)
        texts = documents_of(obtain("storyworld:0.5,mine.txt:0.5", say=lambda _: None))
    assert {storyworld.story(0, 0).text, STORIES[0]} & set(texts) and Path("data/storyworld.txt").is_file()


@pytest.mark.parametrize(
    "spec", ["mine.txt,others.txt", "mine.txt:0.5,others.txt", "mine.txt:0,mine.txt:1", ":0.5,mine.txt:1", "a:nan,b:1", "a:-1,b:2"]
)
def test_a_mix_without_a_share_for_every_text_is_refused(folder: Path, spec: str) -> None:
    before = listing(folder)
    with pytest.raises(UsageError, match="needs a share above 0"):
        obtain(spec, say=unheard)
    assert listing(folder) == before


def test_a_path_with_a_comma_is_a_path() -> None:
    Path("one, two:1.txt").write_bytes(Path("mine.txt").read_bytes())
    assert obtain("one, two:1.txt", say=unheard) == Path("one, two:1.txt")


# --- the hub ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(fake_hub: FakeHub) -> FakeHub:
    """A hub with TinyStories and a small data set."""
    fake_hub.add(REPO, {TRAIN: SEPARATOR.join(HUB_STORIES).encode(), VALID: HUB_STORIES[-1].encode()})
    fake_hub.add("someone/tales", {"train.txt": SEPARATOR.join(STORIES).encode()})
    return fake_hub


def test_tinystories_come_from_the_hub_once(hub: FakeHub) -> None:
    path = obtain("tinystories", say=lambda _: None)
    assert path == Path("data/tinystories.txt") and documents_of(path) == HUB_STORIES[:-1]  # the last one is for validation
    asked = len(hub.requests)
    assert obtain("tinystories", say=lambda _: None) == path and len(hub.requests) == asked
    elsewhere = obtain("tinystories", text_out=Path("tiny/t.txt"), say=lambda _: None)
    assert elsewhere == Path("tiny/t.txt") and elsewhere.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["t.json", "t-valid.txt"])
def test_F1_a_users_file_beside_the_text_that_is_asked_for_is_not_overwritten(hub: FakeHub, name: str) -> None:
    Path(name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name}: .* would be overwritten"):
        obtain("tinystories", text_out=Path("t.txt"), say=lambda _: None)
    assert Path(name).read_text() == "mine" and not Path("t.txt").exists()
    Path(name).unlink()
    first = obtain("tinystories", text_out=Path("t.txt"), say=lambda _: None).read_bytes()
    Path("t.txt").write_text("cut")  # the note still says whose it is
    assert obtain("tinystories", text_out=Path("t.txt"), say=lambda _: None).read_bytes() == first
    Path("t.json").unlink()  # without its note it may be anybody's
    with pytest.raises(UsageError, match=r"t\.txt: is there already"):
        obtain("tinystories", text_out=Path("t.txt"), say=lambda _: None)


def test_some_tinystories_cost_only_the_beginning_of_the_file(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TINYSTORIES_BYTES_PER_STORY", len(HUB_STORIES[0]) + 20)
    found = documents_of(obtain("tinystories", stories=10, say=lambda _: None))
    assert len(found) in (10, 11) and found == HUB_STORIES[: len(found)]
    sent = sum(request.sent_bytes for request in hub.data_requests)
    assert sent < 0.5 * len(SEPARATOR.join(HUB_STORIES))


def test_a_data_set_of_the_hub_is_written_to_a_text_of_its_name(hub: FakeHub) -> None:
    path = obtain("someone/tales", stories=4, say=lambda _: None)
    assert path == Path("data/someone--tales.txt") and documents_of(path) == STORIES[:4]


# --- the command ------------------------------------------------------------------------------------------------------------------------


def test_prepare_writes_a_plain_text_and_stops(folder: Path) -> None:
    result = positron("prepare", "--dataset", "storyworld", "--stories", "3", "--text_out", "out/tales.txt", "--json")
    assert result.code == 0 and json.loads(result.out) == {"text": "out/tales.txt", "bytes": Path("out/tales.txt").stat().st_size}
    text = Path("out/tales.txt").read_text()
    assert text.endswith("\n<|endoftext|>\n") and text.count("<|endoftext|>") == 3
    assert not Path("data").exists() and not Path("tokenizer").exists()
    result = positron("prepare", "--dataset", "mine.txt", "--text_out", "copy.txt")
    assert (result.code, result.out) == (0, "") and "copy.txt: 40 stories" in result.err


def test_prepare_prints_its_report_on_stdout_and_progress_on_stderr(workshop: Path) -> None:
    words = ("prepare", "--dataset", "text.txt", "--tokenizer_path", "spm.model")
    table, object_ = positron(*words), positron(*words, "--json")
    assert table.code == object_.code == 0 and "ready: positron train --dataset_path text.txt" in table.err
    report = json.loads(object_.out)
    assert report["text"] == "text.txt" and Path(report["folder"]).is_dir()
    assert report["train_stories"] + report["validation_stories"] == report["stories"]
    assert f"{report['train_stories']:,}" in table.out and f"{report['vocab_size']:,}" in table.out
    assert "ready" not in table.out and object_.out.count("\n") == 1


@pytest.mark.parametrize("words", [("--stories", "0"), ("--config", "HugeGPT"), ("--seed", "-1")])
def test_prepare_refuses_what_cannot_be(words: tuple[str, str]) -> None:
    result = positron("prepare", "--dataset", "mine.txt", *words)
    assert result.code == 2 and words[0].removeprefix("--") in f"{result.sentence} {result.hint}"
    assert not Path("data").exists()


# --- what stands where a text is to be written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["mine.txt", "storyworld", "mine.txt:0.5,others.txt:0.5"])
@pytest.mark.parametrize("kind", ["file", "link", "pipe", "folder"])
def test_what_stands_at_text_out_is_never_replaced(folder: Path, dataset: str, kind: str) -> None:
    Path("others.txt").write_text("Other one." + SEPARATOR + "Other two.", encoding="utf-8")
    Path("kept.txt").write_text("kept", encoding="utf-8")
    out = Path("out.txt")
    {
        "file": lambda: out.write_text("kept", encoding="utf-8"),
        "link": lambda: out.symlink_to("kept.txt"),
        "pipe": lambda: os.mkfifo(out),
        "folder": lambda: out.mkdir(),
    }[kind]()
    before = out.lstat()
    with pytest.raises(UsageError, match="is there already") as caught:
        obtain(dataset, stories=2, text_out=out, say=unheard)
    assert caught.value.hint == "--text_out out-2.txt"
    assert (out.lstat().st_ino, out.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert Path("kept.txt").read_text(encoding="utf-8") == "kept"


def test_a_text_with_its_note_may_be_made_again_as_another(folder: Path) -> None:
    for stories in (2, 3):
        obtain("storyworld", stories=stories, text_out=Path("tales.txt"), say=lambda _: None)
        assert len(documents_of(Path("tales.txt"))) == stories
