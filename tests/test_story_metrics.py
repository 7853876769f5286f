"""Laws of the story metrics: each measure against a naive twin or by hand, and what the suite says about a model's stories."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.runs import positron
from positron_mini import storyworld
from positron_mini.evaluate import story_metrics
from positron_mini.evaluate.story_metrics import (
    SuffixIndex,
    distinct,
    held_out_stories,
    is_from_storyworld,
    longest_repeat,
    means,
    measure_story,
    suffix_order,
    train_stories,
    words_of,
)
from positron_mini.text.prepare import Prepared, prepare_corpus

words = st.lists(st.sampled_from("abc"), max_size=24)
stories = st.lists(words.map(" ".join), max_size=5)


# --- repetition -------------------------------------------------------------------------------------------------------------------------


def test_words_are_told_apart_by_letters_alone() -> None:
    assert words_of("\"Don't go,\" said Mia.\nMia DIDN'T go…") == ["don't", "go", "said", "mia", "mia", "didn't", "go"]


def test_distinct_runs_by_hand() -> None:
    told = "the cat saw the cat".split()  # noqa: SIM905
    assert (distinct(told, 1), distinct(told, 2), distinct(told, 3)) == (3 / 5, 3 / 4, 1.0)
    assert distinct([], 1) == distinct(["a"], 2) == 1.0


@given(words)
def test_the_longest_repeat_is_the_longest_run_at_two_places(told: list[str]) -> None:
    runs = [tuple(told[i:j]) for i in range(len(told)) for j in range(i + 1, len(told) + 1)]
    assert longest_repeat(told) == max((len(run) for run in set(runs) if runs.count(run) > 1), default=0)


# --- memorisation -----------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3), max_size=40), st.sampled_from([1, 2, 8, 256]))
def test_places_are_sorted_by_what_follows(ids: list[int], length: int) -> None:
    order = suffix_order(np.array(ids, np.intc), length).tolist()
    assert sorted(order) == list(range(len(ids)))
    following = [ids[place : place + length] for place in order]
    assert following == sorted(following)


@given(stories, words)
def test_the_longest_copy_equals_its_naive_twin(told: list[str], asked: list[str]) -> None:
    held = [story.split() for story in told]
    runs = {tuple(story[i:j]) for story in held for i in range(len(story)) for j in range(i + 1, len(story) + 1)}
    known = [asked[i:j] for i in range(len(asked)) for j in range(i + 1, len(asked) + 1) if tuple(asked[i:j]) in runs]
    copy = SuffixIndex(told).longest_copy(" ".join(asked))
    assert copy.words == max(map(len, known), default=0)
    assert copy.words == 0 or copy.text.split() in known


def test_a_copy_ends_at_an_unknown_word_and_at_the_end_of_a_story() -> None:
    index = SuffixIndex(["Tom saw a cat. It ran.", "Mia saw a dog."])
    assert index.longest_copy("Then tom SAW a cat; it swam.") == story_metrics.Copy(5, "tom saw a cat it")
    assert index.longest_copy("It ran. Mia saw").words == 2  # the end of one story and the beginning of another are no copy
    assert index.longest_copy("Grandpa sang.") == index.longest_copy("") == story_metrics.Copy(0, "")
    assert SuffixIndex([]).longest_copy("Tom saw").words == 0
    assert index.bytes == len("Tom saw a cat. It ran.Mia saw a dog.")


def test_a_very_long_copy_is_reported_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story_metrics, "LONGEST_COPY", 8)
    story = " ".join(f"w{i}" for i in range(30))
    assert SuffixIndex([story]).longest_copy(story) == story_metrics.Copy(8, "w0 w1 w2 w3 w4 w5 w6 w7")


def test_a_story_copied_from_real_text_is_found_and_one_of_our_own_is_not(real_text: Path) -> None:
    told = (real_text / "tinystories-train.txt").read_text()[:1_000_000].split("<|endoftext|>")
    index = SuffixIndex(told[:-1])
    middle = " ".join(told[40].split()[5:65])
    assert index.longest_copy(f"Zog {middle} zog").words == len(words_of(middle))
    assert index.longest_copy(next(iter(storyworld.stories(0))).text).words < story_metrics.COPIED_WORDS


# --- a story ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stopped", "ended"),
    [("The end.", True, True), ('He said, "Hi!"', True, True), ("So they", True, False), ("The end.", False, False), ("", True, False)],
)
def test_a_story_has_ended_when_the_model_stopped_after_a_whole_sentence(text: str, stopped: bool, ended: bool) -> None:
    assert measure_story(text, stopped=stopped).ended is ended


def test_only_what_was_measured_is_judged() -> None:
    loop = "He ran to the big red house and sat in the sun. " * 2
    alone = measure_story(loop, stopped=True)
    assert alone.verdicts() == {"ends": True, "varied": False} and alone.longest_repeat == 12
    copied = measure_story(loop, stopped=True, index=SuffixIndex([loop]))
    assert copied.copied_words == 24 and copied.verdicts() == {"ends": True, "varied": False, "own_words": False}
    assert "most_copied_words" not in means([alone]) and means([alone, copied])["copied_words"] == 24


def test_consistency_is_asked_of_the_story_worlds_checker() -> None:
    one = next(iter(storyworld.stories(0))).text
    found = measure_story(one, stopped=True, is_storyworld=True)
    assert found.consistent is True and found.parsed_share == 1.0 and found.verdicts()["consistent"]
    assert measure_story(one, stopped=True).consistent is None
    assert is_from_storyworld([one]) and not is_from_storyworld(["Tom sneezed."]) and not is_from_storyworld([])


# --- the suite --------------------------------------------------------------------------------------------------------------------------


def prepared_text() -> Prepared:
    return prepare_corpus(Path("text.txt"), tokenizer_path=Path("spm.model"), vocab_size=None, say=lambda _: None)


def test_the_index_reads_training_stories_and_the_comparison_those_held_out(workshop: Path) -> None:
    prepared = prepared_text()
    told = {" ".join(words_of(story)) for story in Path("text.txt").read_text().split("<|endoftext|>")}
    train, held_out = ({" ".join(words_of(story)) for story in found} for found in (train_stories(prepared), held_out_stories(prepared)))
    assert train and held_out and train | held_out <= told and not train & held_out
    few = list(train_stories(prepared, most_bytes=1_000))
    assert few == list(islice(train_stories(prepared), len(few))) and sum(len(story.encode()) for story in few) <= 1_000


def run_suite(*words: str) -> Any:
    result = positron("eval", "--ckpt", "runs/base", "--suite", "stories", "--items", "3", "--threads", "1", "--json", *words).ok()
    return json.loads(result.out), result


def test_the_suite_measures_the_stories_of_a_model_beside_held_out_ones(workshop: Path) -> None:
    found, _ = run_suite()
    assert (found["suite"], found["items"]) == ("stories", 3) and set(found["by_kind"]) == {"ends", "varied", "own_words"}
    assert set(found["measures"]) == set(found["held_out"]) and found["bits_per_byte"] > 0 and found["indexed_bytes"] > 1_000
    assert found["measures"]["words"] > 0 and found["held_out"]["copied_words"] > found["measures"]["copied_words"]
    assert found["accuracy"] <= min(kind["accuracy"] for kind in found["by_kind"].values())
    again, _ = run_suite()
    assert again == found
    table = positron("eval", "--ckpt", "runs/base", "--suite", "stories", "--items", "3", "--threads", "1").out
    assert "held-out stories" in table and "copied words" in table and "bits per byte" in table


def test_without_the_training_text_what_needs_it_is_left_out_and_said(workshop: Path) -> None:
    Path("text.txt").rename("moved.txt")
    found, result = run_suite()
    assert set(found["by_kind"]) == {"ends", "varied"} and "held_out" not in found and "bits_per_byte" not in found
    assert "name it with --text FILE" in result.err
    named, _ = run_suite("--text", "moved.txt")
    assert set(named["by_kind"]) == {"ends", "varied", "own_words"}
