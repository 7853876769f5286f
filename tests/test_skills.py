"""Laws of the minimal pairs: nobody gains by knowing words alone, no corpus of ours holds them, milestones score them without a trace."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import shape
from helpers.project import ROOT
from helpers.runs import forked, lines_of, needs_fork, positron, tiny_train, trained
from helpers.texts import made_stories
from positron_mini import storyworld
from positron_mini.config import TrainConfig
from positron_mini.evaluate import skills
from positron_mini.evaluate.interval import wilson
from positron_mini.evaluate.pairs import PAIRS, SKILLS, Pair, skill_pairs, skill_units
from positron_mini.evaluate.pairs.making import collect, cross, swap
from positron_mini.evaluate.skills import SkillResult, SkillTest, judge, result_of, run_tests, skill_test, skills_suite
from positron_mini.model import GPT
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_record import RunRecord
from positron_mini.storyworld.checker import StoryReplay
from positron_mini.text.tokenizer import BOS, EOS, Tokenizer, train_tokenizer
from positron_mini.train import pretrain
from positron_mini.train.budget import first_horizon

LEVEL = 0.01  # of the joint tests
Scorer = Callable[[Sequence[int]], float]


# --- the pairs --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_has_two_hundred_pairs_and_no_text_twice(skill: str) -> None:
    pairs = skill_pairs(skill)
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    assert len(pairs) == PAIRS == 200 and len(set(texts)) == 2 * PAIRS
    assert not [text for text in texts if set("_{}<>|") & set(text) or "  " in text or text != text.strip()]
    assert all(text[0].isupper() or text[0] == '"' for text in texts)


def test_there_are_fifteen_skills_each_with_a_line_about_it() -> None:
    assert len(SKILLS) == 15
    assert all(name == skill.name and skill.about for name, skill in SKILLS.items())


@pytest.mark.parametrize("skill", SKILLS)
def test_the_right_texts_of_a_unit_hold_the_words_of_the_wrong_ones_and_both_are_equally_long(skill: str) -> None:
    for one, other in skill_units(skill):
        assert _words(one.good) + _words(other.good) == _words(one.bad) + _words(other.bad)
        assert all(len(pair.good.split()) == len(pair.bad.split()) for pair in (one, other))


def _words(text: str) -> Counter[str]:
    """Words and punctuation marks, each for itself."""
    return Counter(re.findall(r"[\w']+|[^\w'\s]", text))


def test_more_pairs_begin_with_the_same_ones_and_other_seeds_give_others() -> None:
    for skill in SKILLS:
        assert skill_pairs(skill, 20) == skill_pairs(skill)[:20]
        assert len({pair.good for pair in skill_pairs(skill)} & {pair.good for pair in skill_pairs(skill, seed=1)}) < PAIRS // 2


def test_every_process_makes_the_same_pairs() -> None:
    code = "from positron_mini.evaluate.pairs import *; print([skill_pairs(s, 40) for s in SKILLS])"
    said = [
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and said[0].decode().strip() == str([skill_pairs(skill, 40) for skill in SKILLS])


def test_a_unit_crosses_two_contexts_with_two_wordings() -> None:
    assert cross("Tom lost _ hat.", "Mia lost _ hat.", "his", "her") == (
        Pair("Tom lost his hat.", "Tom lost her hat."),
        Pair("Mia lost her hat.", "Mia lost his hat."),
    )
    assert swap("A <red|ball> fell.") == Pair("A red ball fell.", "A ball red fell.")


def test_units_that_differ_in_names_only_count_as_one() -> None:
    def kind(rng: random.Random) -> Any:
        name = rng.choice(("Tom", "Ben", "Max"))
        return cross(f"{name} saw _ cat.", f"{name} saw two _.", "a", "cats")

    assert len(collect((kind,), 1, random.Random(0), ["Tom", "Ben", "Max"])) == 1
    with pytest.raises(ValueError, match="kind 0 cannot make 2"):
        collect((kind,), 2, random.Random(0), ["Tom", "Ben", "Max"])


# --- no corpus of ours holds them -------------------------------------------------------------------------------------------------------


def _texts() -> list[str]:
    return [text for skill in SKILLS for pair in skill_pairs(skill) for text in (pair.good, pair.bad)]


def test_no_story_of_the_story_world_can_hold_a_pair() -> None:
    """Each text has a sentence that no pattern of the world can be read by: proof for all its stories, told or not."""

    def has_foreign_sentence(text: str) -> bool:
        replay = StoryReplay()
        replay.read(text)
        return replay.unparsed > 0

    assert has_foreign_sentence("Tom sneezed.") and not has_foreign_sentence(storyworld.story(0, 0).text)
    assert not [text for text in _texts() if not has_foreign_sentence(text)]


def test_no_pair_occurs_in_the_story_world_or_the_sample_file() -> None:
    told = "\n".join(story.text for story in islice(storyworld.stories(0), 300))
    sample = ROOT / "tiny_instruct_sample.jsonl"
    told += "\n".join(str(value) for line in sample.read_text().splitlines() for value in json.loads(line).values())
    assert "Once upon a time" in told
    assert not [text for text in _texts() if text in told]


def test_the_pairs_are_in_the_words_of_tinystories_and_not_copied_from_it(real_text: Path) -> None:
    train = (real_text / "tinystories-train.txt").read_text()
    told = _plain(train)
    known, words = Counter(told), Counter(word for text in _texts() for word in _plain(text))
    rare = {word for word in words if known[word] < 20}
    assert sum(words[word] for word in rare) < 0.005 * words.total(), sorted(rare)
    runs = set(zip(*(told[i:] for i in range(5)), strict=False))  # a text that occurs begins with five words that do
    assert not [text for text in _texts() if tuple(_plain(text)[:5]) in runs and text in train]


def _plain(text: str) -> list[str]:
    return re.findall(r"\w+", text)


# --- who knows words only gains nothing -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizer: Tokenizer) -> dict[str, tuple[Tokenizer, list[str]]]:
    """Tokenizers of several sizes with the texts that they were trained on; real text where there is some."""
    world = [story.text for story in islice(storyworld.stories(0), 300)]
    found = {"made": (tiny_tokenizer, made_stories(200, seed=11)), "world": (train_tokenizer(world, 1024, threads=1), world)}
    if folder := os.environ.get("POSITRON_TEST_TEXT"):
        real = (Path(folder) / "tinystories-train.txt").read_text()[:1_500_000].split("<|endoftext|>")
        found |= {f"real {size}": (train_tokenizer(real, size, threads=1), real) for size in (512, 2048)}
    return found


def _of_units(test: SkillTest, skill: str) -> list[list[list[int]]]:
    """The four texts of each unit: right, wrong, right, wrong."""
    texts = test.texts[skill]
    return [texts[i : i + 4] for i in range(0, len(texts), 4)]


def _neighbours(ids: Sequence[int]) -> Counter[tuple[int, int]]:
    return Counter(pairwise(ids))


def test_right_and_wrong_texts_of_a_unit_hold_the_same_tokens(tokenizers: dict[str, tuple[Tokenizer, list[str]]]) -> None:
    for tokenizer, _ in tokenizers.values():
        test = skill_test(tokenizer, threads=1)
        for skill in SKILLS:
            for a, b, c, d in _of_units(test, skill):
                assert Counter(a + c) == Counter(b + d), (skill, tokenizer.decode(a))
                if not SKILLS[skill].is_local:
                    assert _neighbours(a) + _neighbours(c) == _neighbours(b) + _neighbours(d), (skill, tokenizer.decode(a))


def _results(test: SkillTest, score: Scorer) -> list[SkillResult]:
    return [
        result_of(skill, [judge(score(good), score(bad)) for good, bad in zip(texts[::2], texts[1::2], strict=True)])
        for skill, texts in test.texts.items()
    ]


def off_chance(results: Sequence[SkillResult]) -> set[str]:
    """The skills that are not at chance: two-sided exact binomial tests, together at LEVEL by Holm's correction."""
    tails = {}
    for r in results:
        far = abs(r.accuracy - 0.5) * r.pairs  # pairs above or below half
        below = sum(math.comb(r.pairs, k) for k in range(math.floor(r.pairs / 2 - far + 1e-9) + 1))
        tails[r.skill] = min(1.0, 2 * below / 2**r.pairs)
    fallen = set()
    for place, (skill, tail) in enumerate(sorted(tails.items(), key=lambda item: item[1])):
        if tail > LEVEL / (len(tails) - place):
            break
        fallen.add(skill)
    return fallen


class Counts:
    """What counting teaches: ln p of a token by itself, and after the one before it."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        ids = [i for part in tokenizer.encode_many(list(texts), 1) for i in (BOS, *part, EOS)]
        counts = np.bincount(ids, minlength=tokenizer.vocab_size) + 0.1
        self.single = np.log(counts / counts.sum())
        self.pairs, self.before = Counter(pairwise(ids)), Counter(ids)

    def unigram(self, ids: Sequence[int]) -> float:
        return float(sum(self.single[i] for i in ids[1:]))

    def bigram(self, ids: Sequence[int]) -> float:
        return sum(math.log((self.pairs[a, b] + math.exp(self.single[b])) / (self.before[a] + 1)) for a, b in pairwise(ids))


def test_a_model_that_knows_how_often_words_occur_is_right_in_exactly_half(tokenizers: dict[str, tuple[Tokenizer, list[str]]]) -> None:
    for tokenizer, texts in tokenizers.values():
        results = _results(skill_test(tokenizer, threads=1), Counts(tokenizer, texts).unigram)
        assert {result.accuracy for result in results} == {0.5}
        assert not off_chance(results)


def test_a_model_that_knows_neighbours_learns_the_local_skills_only(tokenizers: dict[str, tuple[Tokenizer, list[str]]]) -> None:
    tokenizer, texts = tokenizers.get("real 2048", tokenizers["world"])
    results = _results(skill_test(tokenizer, threads=1), Counts(tokenizer, texts).bigram)
    assert {r.skill for r in results if r.accuracy != 0.5} <= {name for name, skill in SKILLS.items() if skill.is_local}
    assert off_chance(results)


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_model_is_at_chance(tokenizers: dict[str, tuple[Tokenizer, list[str]]], seed: int) -> None:
    for tokenizer in (tokenizers["world"][0], tokenizers.get("real 2048", tokenizers["made"])[0]):
        model = GPT(shape(vocab_size=tokenizer.vocab_size, context_len=128)).init_weights(seed).eval()
        results = skill_test(tokenizer, threads=1).score(model)
        assert not off_chance(results), results
        assert not [r for r in results if not r.low <= 0.5 <= r.high and not SKILLS[r.skill].is_local]


def test_biased_pairs_would_be_found(tiny_tokenizer: Tokenizer) -> None:
    counts = Counts(tiny_tokenizer, made_stories(200, seed=11))
    fair = skill_test(tiny_tokenizer, threads=1)
    one_sided = fair.texts["pronoun_gender"][::4], fair.texts["pronoun_gender"][1::4]  # only the pairs in which "he" is right
    biased = SkillTest({**fair.texts, "pronoun_gender": [ids for pair in zip(*one_sided, strict=True) for ids in pair]})
    assert off_chance(_results(biased, counts.unigram)) == {"pronoun_gender"}


# --- scoring ----------------------------------------------------------------------------------------------------------------------------


def test_a_text_is_scored_by_the_sum_of_its_tokens_logprobs_after_bos(tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    test = skill_test(tiny_tokenizer, 4, threads=1)

    def naive(ids: Sequence[int]) -> float:
        with torch.inference_mode():
            table = tiny_model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
        return float(sum(table[i, token] for i, token in enumerate(ids[1:])))

    short = {skill: [ids for ids in texts if len(ids) <= tiny_model.config.context_len] for skill, texts in test.texts.items()}
    short = {skill: texts for skill, texts in short.items() if len(texts) == 8}
    assert len(short) >= 3
    assert SkillTest(short).score(tiny_model) == _results(SkillTest(short), naive)


@pytest.mark.parametrize(("good", "bad", "points"), [(-1.0, -2.0, 1.0), (-2.0, -1.0, 0.0), (-3.0, -3.00001, 0.5), (-3.0, -3.01, 1.0)])
def test_the_likelier_text_wins_and_equal_ones_share(good: float, bad: float, points: float) -> None:
    assert judge(good, bad) == points


def test_a_result_carries_wilsons_interval_and_its_line() -> None:
    result = result_of("tense", [1.0, 0.5, 1.0, 0.0])
    assert (result.accuracy, result.pairs, (result.low, result.high)) == (0.625, 4, wilson(2.5, 4))
    assert result.record(7) == {
        "step": 7, "skill": "tense", "accuracy": 0.625, "low": round(result.low, 4), "high": round(result.high, 4), "pairs": 4,
    }  # fmt: skip


def test_a_model_that_is_always_right_gets_everything(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Tokenizer, tiny_model: GPT) -> None:
    def knowing(_model: GPT, documents: Sequence[Sequence[int]], **_: Any) -> list[torch.Tensor]:
        return [torch.tensor([-1.0 if i % 2 == 0 else -2.0]) for i in range(len(documents))]

    monkeypatch.setattr(skills, "token_logprobs", knowing)
    result = skills_suite(tiny_model, tiny_tokenizer, pairs=6)
    assert (result["suite"], result["items"], result["accuracy"], result["chance"]) == ("skills", 6 * 15, 1.0, 0.5)
    assert set(result["by_kind"]) == set(SKILLS) and {row["items"] for row in result["by_kind"].values()} == {6}


# --- milestones -------------------------------------------------------------------------------------------------------------------------


def test_what_fits_is_the_longest_beginning_of_the_whole(tiny_tokenizer: Tokenizer) -> None:
    full = skill_test(tiny_tokenizer, threads=1)
    assert full.within(full.tokens) == full
    part = full.within(full.tokens / 3)
    assert part is not None and part.pairs % 2 == 0 and part == full.beginning(part.pairs)
    assert part.tokens <= full.tokens / 3 < full.beginning(part.pairs + 2).tokens
    smallest = full.beginning(2)
    assert full.within(smallest.tokens) == smallest
    assert full.within(smallest.tokens - 1) is None


@pytest.mark.parametrize(("part", "scorings"), [(0.01, 4), (0.5, 4), (4.0, 12), (4.0, 1), (1_000.0, 20)])
def test_all_scorings_of_a_run_together_cost_a_twentieth_of_its_training(tiny_tokenizer: Tokenizer, part: float, scorings: int) -> None:
    full = skill_test(tiny_tokenizer, threads=1)
    run_tokens = int(part * full.tokens / skills.SHARE)
    tests = run_tests(full, run_tokens, scorings)
    sizes = [0 if test is None else test.tokens for test in (tests.milestone, tests.end)]
    spent = ((scorings - 1) * sizes[0] + sizes[1]) * skills.FORWARD_COST / run_tokens
    unit = full.beginning(2).tokens * 2 * scorings * skills.FORWARD_COST / run_tokens  # what does not fit is less than a unit each
    assert spent <= 0.05 and (spent > 0.05 - unit or full in (tests.milestone, tests.end))
    assert sizes[1] >= sizes[0]  # the end is measured best


def test_a_run_is_scored_on_as_many_pairs_as_its_milestones_leave_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(pretrain, "skill_test", lambda _: None)
    monkeypatch.setattr(pretrain, "run_tests", lambda _full, tokens, scorings: asked.append((tokens, scorings)))
    tokenizer: Any = object()
    for milestones, horizon, last, scorings in (
        (None, 200, 200, 3),  # 0, 100, 200
        (None, 250, 250, 4),  # and the end
        (frozenset({0, 20}), 30, 30, 3),
        (None, None, 1_000, 11),
        (frozenset({0, 3_000}), None, 3_000, 2),
    ):
        pretrain.milestone_skills.cache_clear()
        pretrain.milestone_skills(tokenizer, milestones, 512, horizon)
        assert asked.pop() == (last * 512, scorings)
    pretrain.milestone_skills.cache_clear()


def test_a_run_with_a_budget_is_scored_on_the_same_pairs_however_its_horizon_moves() -> None:
    events = ({"kind": "schedule", "horizon": 1_000}, {"kind": "note"}, {"kind": "schedule", "horizon": 900})
    recorded = RunRecord(kind="pretrain", events=events)
    for budget, known, planned in ((None, recorded, 900), ("10m", recorded, 1_000), ("10m", None, 900)):
        assert first_horizon(TrainConfig(budget=budget), known, 900) == planned


SCORED = {0, 20, 30}  # the milestones of a tiny run, and its end


def test_a_tiny_run_has_no_time_for_skills(workshop: Path) -> None:
    assert tiny_train("runs/x", "--max_steps", "30").code == 0
    assert not Path("runs/x/skills.jsonl").exists() and lines_of(Path("runs/x/samples.jsonl"))


def test_milestones_write_a_line_per_skill_and_leave_the_training_alone(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skills, "SHARE", 0.5)
    monkeypatch.setattr(skills, "END_PART", 0.6)
    assert tiny_train("runs/x", "--max_steps", "30").code == 0
    lines = lines_of(Path("runs/x/skills.jsonl"))
    assert [line["step"] for line in lines] == [step for step in sorted(SCORED) for _ in SKILLS]
    assert [line["skill"] for line in lines] == 3 * list(SKILLS)
    assert all(set(line) == {"step", "skill", "accuracy", "low", "high", "pairs"} for line in lines)
    pairs = {line["step"]: line["pairs"] for line in lines}
    assert 2 <= pairs[0] == pairs[20] < pairs[30]
    assert trained(Path("runs/x"), 30) == trained(Path("runs/base"), 30)


@needs_fork
def test_skills_of_a_run_that_was_killed_are_those_of_one_that_was_not(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skills, "SHARE", 0.5)
    assert tiny_train("runs/whole", "--max_steps", "30").code == 0
    whole = lines_of(Path("runs/whole/skills.jsonl"))
    logged = RunFolder.log

    def die_within_the_second_milestone(run: RunFolder, name: str, record: dict[str, Any]) -> None:
        logged(run, name, record)
        if name == "skills" and len(lines_of(run.path / "skills.jsonl")) == 20:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", die_within_the_second_milestone)
        assert forked(lambda: tiny_train("runs/x", "--max_steps", "30").code) == -signal.SIGKILL
    assert lines_of(Path("runs/x/skills.jsonl")) == whole[:20]
    assert tiny_train("runs/x", "--max_steps", "30").code == 0
    assert lines_of(Path("runs/x/skills.jsonl")) == whole
    assert tiny_train("runs/x", "--max_steps", "30", "--resume_from_step", "12").code == 0
    assert lines_of(Path("runs/x/skills.jsonl")) == whole
    moved = [row for path in Path("runs/x/superseded").rglob("skills.jsonl") for row in lines_of(path)]
    assert moved == [row for row in whole if row["step"] > 12]


# --- the command ------------------------------------------------------------------------------------------------------------------------


def test_the_command_prints_one_object_or_a_table(workshop: Path) -> None:
    result = positron("eval", "--ckpt", "runs/base", "--suite", "skills", "--items", "4", "--json", "--threads", "1")
    found = json.loads(result.out)
    assert result.code == 0 and result.out.count("\n") == 1
    assert {"suite", "items", "accuracy", "low", "high", "by_kind"} <= set(found)
    assert (found["suite"], found["items"], list(found["by_kind"])) == ("skills", 60, list(SKILLS))
    assert all(set(row) == {"items", "accuracy", "low", "high"} for row in found["by_kind"].values())
    table = positron("eval", "--ckpt", "runs/base", "--suite", "skills", "--items", "4", "--threads", "1")
    assert table.code == 0 and "word_order" in table.out and "4 pairs" in table.out and "by guessing: 50.0%" in table.out


@pytest.mark.parametrize("items", ["3", "202"])
def test_a_number_of_pairs_that_cannot_be_is_refused(workshop: Path, items: str) -> None:
    result = positron("eval", "--ckpt", "runs/base", "--suite", "skills", "--items", items)
    assert result.code == 2 and "pairs come in twos" in result.sentence and result.hint == "--items 200"


@pytest.mark.parametrize("words", [(), ("--text", "text.txt", "--suite", "skills")])
def test_either_a_text_or_a_suite_is_measured(workshop: Path, words: tuple[str, ...]) -> None:
    result = positron("eval", "--ckpt", "runs/base", *words)
    assert result.code == 2 and "either --text or --suite" in result.sentence
