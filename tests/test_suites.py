"""Laws of the suites: the interval, the judging of replies, items that no training text holds, the form of the result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.runs import positron
from positron_mini import storyworld
from positron_mini.chat.formats import join_input
from positron_mini.evaluate import suites
from positron_mini.evaluate.interval import wilson
from positron_mini.evaluate.suites import Item, chance_of, reading_items, run_suite, tally
from positron_mini.model import GPT
from positron_mini.store.checkpoint import Checkpoint


@pytest.mark.parametrize(
    ("right", "items", "low", "high"),
    [
        (0, 0, 0.0, 1.0),
        (0, 10, 0.0, 0.27753),  # z2 / (n + z2)
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (1, 1, 0.20655, 1.0),  # 1 / (1 + z2)
    ],
)
def test_the_interval_is_wilsons(right: int, items: int, low: float, high: float) -> None:
    assert wilson(right, items) == pytest.approx((low, high), abs=1e-5)


@given(items=st.integers(1, 500), data=st.data())
def test_the_ends_of_the_interval_lie_two_standard_errors_of_theirs_from_the_share(items: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, items))
    for end in wilson(right, items):
        assert abs(right / items - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / items), abs=1e-6)


def test_a_tally_counts() -> None:
    assert tally([True, False, True, True]) == {"items": 4, "accuracy": 0.75, **dict(zip(("low", "high"), wilson(3, 4), strict=True))}
    assert tally([]) == {"items": 0, "accuracy": 0.0, "low": 0.0, "high": 1.0}


def test_guessing_is_scored_by_the_reply_to_the_next_task_of_the_kind() -> None:
    def wants(word: str) -> Callable[[str], bool]:
        return lambda reply: reply == word

    items = [Item("", "who", wants("Tom")), Item("", "what", wants("ball")), Item("", "who", wants("Tom")), Item("", "who", wants("Mia"))]
    # who: Tom's task gets the reply "Tom" of the third, the third "Mia", the fourth "Tom"; what: alone, nothing to guess from
    assert chance_of(items, ["Tom", "ball", "Tom", "Mia"]) == pytest.approx(1 / 4)
    assert chance_of([], []) == 0.0


# --- items ------------------------------------------------------------------------------------------------------------------------------


def test_reading_items_are_two_questions_a_validation_story_in_a_fixed_order() -> None:
    expected: list[tuple[str, str]] = []
    for index in range(30):
        story = storyworld.story(0, index, "validation")
        asked = storyworld.questions(story)
        for number in dict.fromkeys((index % len(asked), (7 * index + 3) % len(asked))):
            expected.append((join_input(asked[number].text, story.text), asked[number].kind))
    found = [(item.prompt, item.kind) for item in reading_items(40)]
    assert found == expected[:40] and len(found) == 40
    assert [item.prompt for item in reading_items(10)] == [prompt for prompt, _ in expected[:10]]
    assert [item.prompt for item in reading_items(10, seed=1)] != [prompt for prompt, _ in expected[:10]]


def test_what_is_asked_was_in_no_training_text() -> None:
    taught = {story.text for story in islice(storyworld.stories(0), 200)} | {row["input"] for row in storyworld.instruction_rows(0, 100)}
    asked = [item.prompt for item in reading_items(60)]
    unseen = [story.text for story in islice(storyworld.stories(0, split="validation"), 60)]
    assert all(any(story in prompt for story in unseen) for prompt in asked)
    assert not any(text in prompt for text in taught if text for prompt in asked)

    def plots(split: storyworld.Split) -> set[tuple[str, ...]]:
        told = [story.facts for story in islice(storyworld.stories(0, split=split), 200)]
        return {(facts["arc"], *(person["name"] for person in facts["characters"])) for facts in told}

    assert not plots("train") & plots("validation")  # nor one with other words for the same arc and cast


def test_every_kind_of_question_occurs_in_the_suite() -> None:
    kinds = {question.kind for index in range(60) for question in storyworld.questions(storyworld.story(0, index, "validation"))}
    assert {item.kind for item in reading_items(suites.READING_ITEMS)} == kinds


# --- judging ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, Callable[[str], str]], dict[str, Any]]:
    """Runs a suite with a made-up model: a function from what is asked to the reply."""

    def run(name: str, items: int, reply: Callable[[str], str]) -> dict[str, Any]:
        monkeypatch.setattr(suites, "prompt_ids", lambda _checkpoint, text: text)
        monkeypatch.setattr(suites, "generate", lambda _m, _t, prompt, _c, end_ids: [SimpleNamespace(text=reply(prompt))])
        checkpoint: Any = SimpleNamespace(tokenizer=None, end_ids=frozenset({2}))
        model: Any = None
        return run_suite(name, model, checkpoint, items=items)

    return run


def test_a_model_that_is_always_right_gets_everything_and_one_that_is_silent_nothing(ask: Callable[..., dict[str, Any]]) -> None:
    answers = {}
    for index in range(40):
        story = storyworld.story(0, index, "validation")
        answers |= {join_input(question.text, story.text): question.answer for question in storyworld.questions(story)}
    tales = {storyworld.request_for(story).text: story.text for story in islice(storyworld.stories(0, split="validation"), 60)}
    for name, replies in (("reading", answers), ("requests", tales)):
        result = ask(name, 30, replies.__getitem__)
        assert (result["suite"], result["items"], result["accuracy"], result["high"]) == (name, 30, 1.0, 1.0)
        assert all(row["accuracy"] == 1.0 for row in result["by_kind"].values())
        assert sum(row["items"] for row in result["by_kind"].values()) == 30
        result = ask(name, 30, lambda _: "")
        assert (result["accuracy"], result["low"], result["chance"]) == (0.0, 0.0, 0.0)


def test_each_right_answer_counts_for_its_kind(ask: Callable[..., dict[str, Any]]) -> None:
    items = list(reading_items(30))
    kind, known = items[0].kind, dict[str, str]()
    for index in range(30):
        story = storyworld.story(0, index, "validation")
        known |= {
            join_input(question.text, story.text): question.answer for question in storyworld.questions(story) if question.kind == kind
        }
    result = ask("reading", 30, lambda prompt: known.get(prompt, ""))
    right = sum(item.kind == kind for item in items)
    assert result["accuracy"] == right / 30
    assert all(row["accuracy"] == 0 for name, row in result["by_kind"].items() if name != kind)
    assert result["by_kind"][kind]["items"] == right and result["by_kind"][kind]["accuracy"] == 1.0


def test_the_progress_is_told(monkeypatch: pytest.MonkeyPatch, tiny_model: GPT) -> None:
    monkeypatch.setattr(suites, "generate", lambda *_, **__: [SimpleNamespace(text="")])
    monkeypatch.setattr(suites, "prompt_ids", lambda *_: [1])
    told: list[tuple[int, int]] = []
    checkpoint: Any = SimpleNamespace(tokenizer=None, end_ids=frozenset())
    run_suite("requests", tiny_model, checkpoint, items=3, done=lambda i, n: told.append((i, n)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_chat_model_is_asked_in_a_conversation_and_a_base_model_in_a_text(tiny_model: GPT, workshop: Path) -> None:
    from positron_mini.store.find import find_checkpoint

    base = find_checkpoint("runs/base")
    tokenizer = base.tokenizer
    assert suites.prompt_ids(base, "Who is Tom?") == [1, *tokenizer.encode("Who is Tom?\n")]
    chat = Checkpoint(base.folder, base.config, tokenizer, is_chat=True, has_training=False)
    ids = suites.prompt_ids(chat, "Who is Tom?")
    start, end = tokenizer.im_start_id, tokenizer.im_end_id
    assert [index for index in ids if index in (1, start, end)] == [1, start, end, start]
    assert tokenizer.decode(ids[-len(tokenizer.encode("assistant\n")) :]) == "assistant\n"


def test_the_command_prints_one_object_or_a_table(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("READING", "REQUESTS"):
        monkeypatch.setattr(suites, name, suites.SampleConfig(max_tokens=4, temperature=0.0))
    result = positron("eval", "--ckpt", "runs/base", "--suite", "reading", "--items", "6", "--json", "--threads", "1")
    assert result.code == 0 and result.out.count("\n") == 1
    found = json.loads(result.out)
    assert {"suite", "items", "accuracy", "low", "high", "by_kind"} <= set(found) and (found["suite"], found["items"]) == ("reading", 6)
    assert all(set(row) == {"items", "accuracy", "low", "high"} for row in found["by_kind"].values())
    table = positron("eval", "--ckpt", "runs/base", "--suite", "requests", "--items", "2", "--threads", "1")
    assert table.code == 0 and "by guessing: 0.0%" in table.out and "2 tasks" in table.out
