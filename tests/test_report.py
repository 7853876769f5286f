"""Laws of the evolution report: what is read, the reference lines by naive twins, what counts as learned, the advice, the page."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.project import script_module
from helpers.runs import HOSTILE, TINY, assert_same_run, grown_run, metric, positron, sample, skill, tiny_train, write_run
from positron_mini.errors import PositronError
from positron_mini.evaluate.skills import result_of
from positron_mini.report import plots
from positron_mini.report.advice import advise, constant_rate, gain_per_doubling, improvement
from positron_mini.report.build import MOST_BYTES, write_report
from positron_mini.report.corpus import Corpus, Reference, bigram_probabilities, describe_corpus, remember, unigram_probabilities
from positron_mini.report.evolution import evolution
from positron_mini.report.learned import AREAS, above, binomial_tail, claims, holm, moves, skill_lines
from positron_mini.report.markup import esc, visible
from positron_mini.report.page import page
from positron_mini.report.reproduce import reproduction
from positron_mini.report.short import short_form
from positron_mini.report.timeline import compare_texts, shown_steps, timelines
from positron_mini.store.run_history import read_run
from positron_mini.store.run_logs import SkillScore
from positron_mini.text.tokenizer import BOS

# --- reading ----------------------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_in_the_order_of_steps_and_up_to_the_step_asked_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", metrics=[metric(2, 3.0), metric(1, 4.0, 2.5), metric(3, 2.0)], samples=[sample(0, "a"), sample(3, "b")])
    whole, part = read_run(run), read_run(run, until=2)
    assert [row.step for row in whole.reports] == [1, 2, 3] and whole.step == 3 and whole.observed == (0, 3)
    assert [row.step for row in part.reports] == [1, 2] and part.step == 2 and part.observed == (0,)
    assert whole.nats_per_bit == 2.0 and whole.shape is not None and whole.shape.vocab_size == 512


def test_a_loss_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", metrics=[metric(1, 4.0), metric(2, math.nan), metric(3, 2.0, math.inf)])
    assert [row.step for row in read_run(run).reports] == [1, 3] and read_run(run).validations == ()


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("metrics", '{"tokens": 1}', "line 2"),
        ("metrics", '{"step": 1, "tokens": "many", "loss": 1}', "tokens is 'many'"),
        ("samples", '{"step": -1}', "step is not a whole number"),
        ("samples", '{"step": 1, "prompt": 5, "text": "", "seed": 1, "temperature": 0.7}', "prompt is 5"),
        ("skills", "[1]", "line 2"),
        ("skills", '{"step": 1, "skill": "x"}', "accuracy"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, name: str, line: str, said: str) -> None:
    run = grown_run(tmp_path / "r", 100)
    path = run / f"{name}.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *rest]) + "\n")
    with pytest.raises(PositronError) as error:
        read_run(run)
    assert f"{name}.jsonl, line 2" in error.value.message and said in error.value.message and error.value.hint


@pytest.mark.parametrize("change", [{"identity": 5}, {"config": None}, {"events": [{}]}, {"identity": {"model": {"n_layer": 1}}}])
def test_a_record_that_does_not_fit_is_one_error(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(PositronError, match="damaged"):
        read_run(write_run(tmp_path / "r", **change))


# --- reference lines --------------------------------------------------------------------------------------------------------------------

ids = st.lists(st.sampled_from([BOS, 2, 3, 4, 5]), min_size=2, max_size=60)


@given(ids)
def test_unigram_and_bigram_equal_their_naive_twins_and_sum_to_one(text: list[int]) -> None:
    vocab, train = 7, np.array(text, np.int64)
    unigram = unigram_probabilities(train, vocab)
    predicted = [token for token in text if token != BOS]
    assert unigram == pytest.approx([(predicted.count(t) + 1) / (len(predicted) + vocab) for t in range(vocab)])
    followed = [(a, b) for a, b in pairwise(text) if b != BOS]
    for before in range(vocab):
        found = bigram_probabilities(train, unigram, np.full(vocab, before), np.arange(vocab))
        assert found.sum() == pytest.approx(1)
        after = [b for a, b in followed if a == before]
        for t in range(vocab):
            naive = unigram[t]
            if after:
                naive = (max(after.count(t) - 0.75, 0) + 0.75 * len(set(after)) * unigram[t]) / len(after)
            assert found[t] == pytest.approx(naive)


def test_references_are_measured_on_the_very_tokens_of_the_runs_validation(workshop: Path) -> None:
    record = read_run(Path("runs/base"))
    lines = {line.name: line for line in describe_corpus(record).references}
    assert lines["uniform"].loss == math.log(512)
    for line in lines.values():  # as many tokens and bytes as the run's own validation
        assert line.loss / line.bits_per_byte == pytest.approx(record.nats_per_bit, rel=1e-4)
    assert lines["bigram"].loss < lines["unigram"].loss < lines["uniform"].loss


def test_references_outlive_the_cache_and_are_not_taken_from_another_text(workshop: Path) -> None:
    record = read_run(Path("runs/base"))
    corpus = describe_corpus(record)
    assert corpus.report["stories"] == 200 and "samples" not in corpus.report
    remember(record, corpus)
    shutil.rmtree("data")
    assert describe_corpus(record) == corpus
    memory = Path("runs/base/report/corpus.json")
    value = json.loads(memory.read_text())
    for damaged in ("{", "[]", json.dumps({**value, "text": "other"}), json.dumps({**value, "format": 0}), json.dumps({"format": 1})):
        memory.write_text(damaged)
        assert [line.name for line in describe_corpus(record).references] == ["uniform"]


def test_a_story_world_text_has_the_generators_entropy_as_a_line(workshop: Path) -> None:
    Path("text.json").write_text(json.dumps({"corpus": "storyworld", "entropy_bits_per_byte": 0.25}))
    record = read_run(Path("runs/base"))
    line = describe_corpus(record).reference("entropy")
    assert line is not None and record.nats_per_bit is not None
    assert (line.bits_per_byte, line.loss) == (0.25, pytest.approx(0.25 * record.nats_per_bit))


# --- what counts as learned -------------------------------------------------------------------------------------------------------------


def score(step: int, name: str, right: int, pairs: int = 200) -> SkillScore:
    return SkillScore(**skill(step, name, right, pairs))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_binomial_tail_is_the_sum_of_its_terms(share: float) -> None:
    for right in range(22):
        by_hand = sum(math.comb(20, k) * share**k * (1 - share) ** (20 - k) for k in range(right, 21))
        assert binomial_tail(right, 20, share) == pytest.approx(by_hand, abs=1e-12)


def test_holm_by_hand() -> None:
    # thresholds 0.05/4, 0.05/3, 0.05/2, 0.05: the third misses, and takes the fourth with it
    assert holm({"a": 0.012, "b": 0.016, "c": 0.026, "d": 0.04}, 0.05) == {"a", "b"}
    assert holm({}, 0.05) == set() and holm({"a": 0.04}, 0.05) == {"a"}


def test_a_skill_rises_where_it_stays_above_and_one_good_day_does_not_count() -> None:
    rights = {0: 100, 100: 130, 200: 101, 300: 140, 400: 180, 500: 190}
    (line,) = skill_lines([score(step, "tense", right) for step, right in rights.items()])
    assert (line.above_chance, line.above_sure) == (300, 400)
    rights[500] = 100
    (line,) = skill_lines([score(step, "tense", right) for step, right in rights.items()])
    assert (line.above_chance, line.above_sure) == (None, None)


def test_an_interval_that_holds_the_share_claims_nothing_and_many_skills_make_it_harder() -> None:
    alone, crowd = [score(0, "tense", 116)], [score(0, f"skill {i}", 116 if i == 0 else 100) for i in range(15)]
    assert alone[0].low > 0.5 and above(alone, 0.5) == {"tense"}  # p = 0.014
    assert above(crowd, 0.5) == set()
    assert above([score(0, "tense", 112)], 0.5) == set()  # its interval reaches below one half


@pytest.mark.parametrize("pairs", [14, 66, 198, 200])
def test_the_rounding_of_the_log_takes_no_right_pair_away(pairs: int) -> None:
    for half_points in range(pairs, 2 * pairs + 1):
        points = [1.0] * (half_points // 2) + [0.5] * (half_points % 2)
        exact = result_of("tense", points + [0.0] * (pairs - len(points)))
        logged = SkillScore(**exact.record(step=0))
        for share in (0.5, 0.8):
            passes = exact.low > share and binomial_tail(half_points // 2, pairs, share) <= 0.025
            assert above([logged], share) == ({"tense"} if passes else set()), half_points


def test_a_model_that_guesses_is_hardly_ever_said_to_have_learned_something() -> None:
    rng = random.Random(0)
    said = 0
    for _ in range(300):
        scores = [score(0, name, sum(rng.random() < 0.5 for _ in range(100)), 100) for names in AREAS.values() for name in names]
        said += bool(claims(skill_lines(scores)))
    assert said <= 15  # 2.5 % of 300 expected at the most


def test_words_follow_the_evidence() -> None:
    low = [score(0, name, 100) for name in AREAS["grammar"]]
    assert claims(skill_lines(low)) == []
    one = [score(0, name, 150 if name == "tense" else 100) for name in AREAS["grammar"]]
    (claim,) = claims(skill_lines(one))
    assert (claim.area, claim.word, claim.of, [line.skill for line in claim.evidence]) == ("grammar", "emerging", 6, ["tense"])
    (claim,) = claims(skill_lines([score(0, name, 190) for name in AREAS["grammar"]]))
    assert claim.word == "firm"
    (claim,) = claims(skill_lines([score(0, name, 190) for name in AREAS["grammar"][1:]]))
    assert claim.word == "emerging"  # one of its skills was not measured


def test_every_skill_that_is_measured_has_an_area() -> None:
    from positron_mini.evaluate.pairs import SKILLS

    assert sorted(name for names in AREAS.values() for name in names) == sorted(SKILLS)


def test_moves_are_ordered_by_size_and_count_from_the_step_asked_for() -> None:
    scores = [
        score(step, name, right)
        for name, rights in (("a", (100, 150, 160)), ("b", (100, 90, 190)))
        for step, right in zip((0, 5, 9), rights, strict=True)
    ]
    lines = skill_lines(scores)
    assert [(m.skill, round(m.gain, 3), m.is_clear) for m in moves(lines)] == [("b", 0.5, True), ("a", 0.05, False)]
    assert [(m.skill, round(m.gain, 3)) for m in moves(lines, since=4)] == [("b", 0.45), ("a", 0.3)]
    assert moves(skill_lines([score(0, "a", 100)])) == []


# --- advice -----------------------------------------------------------------------------------------------------------------------------


def run_with(tmp_path: Path, bits: dict[int, float], **changes: Any) -> Any:
    return read_run(
        write_run(tmp_path / f"r{random.random()}", metrics=[metric(step, 2.0, value) for step, value in bits.items()], **changes)
    )


def test_the_gain_of_twice_the_tokens_is_the_slope_over_log2(tmp_path: Path) -> None:
    record = run_with(tmp_path, {step: 2.0 - 0.07 * math.log2(512 * step) for step in (100, 200, 300, 400)})
    assert gain_per_doubling(record.validations) == pytest.approx(0.07)
    assert gain_per_doubling(record.validations[:2]) is None


@pytest.mark.parametrize(("slope", "answer"), [(0.10, True), (0.01, False), (-0.05, False)])
def test_it_still_improves_while_twice_the_tokens_take_more_than_three_percent_away(tmp_path: Path, slope: float, answer: bool) -> None:
    bits = {step: 1.0 - slope * math.log2(step / 400) for step in (200, 250, 300, 350, 400)}
    verdict = improvement(run_with(tmp_path, bits)).verdict
    assert verdict.answer is answer and "steps 200 to 400" in verdict.reason


def test_too_few_validations_tell_nothing(tmp_path: Path) -> None:
    assert improvement(run_with(tmp_path, {100: 2.0, 200: 1.9})).verdict.answer is None
    assert improvement(run_with(tmp_path, {})).verdict.answer is None


def test_validations_of_the_cool_down_do_not_count_as_improvement(tmp_path: Path) -> None:
    schedule = {"kind": "schedule", "step": 0, "warmup_steps": 20, "cooldown_steps": 200, "horizon": 500}
    bits = {100: 1.5, 200: 1.0, 250: 1.0, 300: 1.0, 400: 0.8, 500: 0.6}
    record = run_with(tmp_path, bits, events=[schedule])
    assert [row.step for row in constant_rate(record)] == [200, 250, 300] and improvement(record).verdict.answer is False


def lines_with(grammar: int, tracking: int, rest: int) -> Any:
    """Skills of all areas, so many right of 200 each."""
    right = {"grammar": grammar, "keeping track": tracking}
    return skill_lines([score(0, name, right.get(area, rest)) for area, names in AREAS.items() for name in names])


@pytest.mark.parametrize(
    ("lines", "bits", "stories", "tuning"),
    [
        (lines_with(190, 150, 190), 1.0, True, True),
        (lines_with(190, 100, 190), 1.0, True, False),  # keeps track of nothing
        (lines_with(190, 100, 100), 1.0, False, False),  # 6 of 15 above 80 %
        (lines_with(100, 150, 190), 1.0, False, False),  # no grammar
        (lines_with(190, 150, 190), 1.7, False, False),  # no better than a bigram
        ((), 1.0, None, None),
    ],
)
def test_good_enough_by_the_rule(tmp_path: Path, lines: Any, bits: float, stories: bool | None, tuning: bool | None) -> None:
    corpus = Corpus((Reference("bigram", 3.0, 1.5),), {}, {})
    advice = advise(run_with(tmp_path, {100: bits}), corpus, lines)
    assert (advice.stories.answer, advice.fine_tuning.answer) == (stories, tuning)


def test_a_fine_tuning_improves_while_the_newest_held_out_loss_is_the_lowest(tmp_path: Path) -> None:
    for last, answer in ((1.0, True), (1.3, False)):
        record = run_with(tmp_path, {1: 2.0, 2: 1.2, 3: last}, kind="sft", identity={"base": "c" * 64})
        advice = advise(record, Corpus((), {}, {}), ())
        assert advice.improving.answer is answer and advice.stories.answer is None and "chat" in advice.next_command


# --- doing it again ---------------------------------------------------------------------------------------------------------------------


def again(run: Path) -> None:
    """Run what the report says, and compare every byte."""
    lines = [line for line in reproduction(read_run(run), {}) if not line.startswith("#")]
    assert lines[-1] == f"positron report --run {run}"
    os.rename(run, "runs/original")
    for line in lines[:-1]:
        _, *words = shlex.split(line)
        result = positron(*words)
        assert result.code == 0, (line, result.err)
    assert_same_run(Path("runs/original"), run)


@pytest.mark.parametrize(
    "calls",
    [
        [["--max_steps", "9"]],
        [["--max_steps", "9", "--cooldown_steps", "2", "--until_step", "5"]],
        [["--until_step", "6"], ["--finish"]],
        [["--until_step", "6"], ["--finish", "--cooldown_steps", "2"]],
        [["--max_steps", "20", "--until_step", "7"], ["--max_steps", "24", "--until_step", "11"]],
        [["--max_steps", "10"], ["--max_steps", "14"]],  # goes back to the last step at the constant rate
        [["--max_steps", "14", "--seed", "5", "--optimizer", "adamw", "--dropout", "0.1", "--short_steps", "3"]],
    ],
    ids=lambda calls: " | ".join(" ".join(words) for words in calls),
)
def test_the_commands_of_a_report_make_the_same_bytes_again(workshop: Path, calls: list[list[str]]) -> None:
    for words in calls:
        assert tiny_train("runs/mine", *words).code == 0
    again(Path("runs/mine"))


def test_a_run_with_a_budget_shows_its_own_command_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    schedule = {"kind": "schedule", "warmup_steps": 20, "cooldown_steps": 100}
    moved = {"step": 350, "horizon": 400, "bend_step": 350, "bend_multiplier": 0.4}
    folder = grown_run(
        tmp_path / "r",
        events=[{**schedule, "step": 0, "horizon": 420}, {**schedule, **moved}],
        config={"budget": "15m", "out_dir": "runs/r", "short_steps": 9},
        command="positron --budget 15m --out_dir runs/r",
    )
    record = read_run(folder)
    lines = reproduction(record, {})
    assert lines[-2:] == ["positron train --budget 15m --out_dir runs/r", "positron report --run runs/r"]
    assert "it moved the horizon 1 times" in lines[-3] and "--max_steps" not in "".join(lines)
    assert record.schedule.bend_step == 350 and "--budget 30m" in evolution(folder).advice.next_command
    assert "--replay 20" in page(evolution(folder)) and "give the same bytes" not in page(evolution(folder))


def test_a_report_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    config = {"dataset_path": "/home/me/secret/stories.txt", "out_dir": "/home/me/runs/mine", "tokenizer_path": "/home/me/spm.model"}
    run = write_run(tmp_path / "mine", config=config, metrics=[metric(1, 3.0, 2.0)])
    text = "\n".join(reproduction(read_run(run), {}))
    assert "/home" not in text and "--dataset_path stories.txt" in text and "--out_dir mine" in text


def test_a_text_that_this_program_fetched_or_made_is_fetched_or_made_again(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "r", metrics=[metric(1, 3.0)]))
    note = {"corpus": "storyworld", "stories": 500, "seed": 3}
    assert reproduction(record, note)[1] == "positron prepare --dataset storyworld --stories 500 --seed 3 --text_out data/none.txt"
    note = {"source": "roneneldan/TinyStories", "first_bytes": 9_000}
    assert reproduction(record, note)[1] == "positron prepare --dataset tinystories --stories 10 --text_out data/none.txt"


# --- samples side by side ---------------------------------------------------------------------------------------------------------------

texts = st.text(alphabet="ab c\n", max_size=40)


@given(st.none() | texts, texts)
def test_the_pieces_of_a_sample_are_the_sample(before: str | None, text: str) -> None:
    pieces, kept = compare_texts(before, text)
    assert "".join(piece.text for piece in pieces) == text and kept <= len(text.split())
    marked = " ".join(piece.text for piece in pieces if piece.is_new).split()
    assert len(marked) == (len(text.split()) - kept if kept else 0)


def test_what_changed_is_marked_and_what_is_wholly_new_is_not() -> None:
    pieces, kept = compare_texts("The dog ran home and slept.", "The dog ran away and cried and slept.")
    assert [(p.text, p.is_new) for p in pieces] == [("The dog ran ", False), ("away and cried", True), (" and slept.", False)] and kept == 5
    assert compare_texts("One day a cat sat.", "Lily had a red ball.") == (compare_texts(None, "Lily had a red ball.")[0], 0)
    assert compare_texts(None, "a b")[1] == 0


def test_many_milestones_are_thinned_and_the_ends_stay(tmp_path: Path) -> None:
    assert shown_steps([5, 1, 3]) == [1, 3, 5] and shown_steps([]) == []
    chosen = shown_steps(range(0, 1000, 10), 7)
    assert len(chosen) == 7 and chosen[0] == 0 and chosen[-1] == 990
    record = read_run(grown_run(tmp_path / "r", 900))
    for entries in timelines(record.samples, 4).values():
        assert [entry.sample.step for entry in entries] == [0, 300, 600, 900]


# --- figures ----------------------------------------------------------------------------------------------------------------------------


def test_points_are_averaged_in_equal_stretches() -> None:
    points = [(1.0, 4.0), (2.0, 2.0), (9.0, 6.0), (10.0, 8.0)]
    assert plots.binned(points, 2, log=False) == [(1.5, 3.0), (9.5, 7.0)]
    assert plots.binned(points, 2, log=True) == [(1.5, 3.0), (9.5, 7.0)]  # 2 lies below the root of 10
    assert plots.binned([], 2, log=True) == [] and plots.binned([(5.0, 1.0)], 2, log=True) == [(5.0, 1.0)]


@given(st.lists(st.floats(0, 1), max_size=6))
def test_names_in_the_margin_never_overlap(places: list[float]) -> None:
    moved = plots.spread(sorted(places, reverse=True), 0.05)
    assert all(a - b >= 0.05 - 1e-9 for a, b in pairwise(moved)) and all(place > -1e-9 for place in moved)


@pytest.mark.parametrize(("value", "said"), [(0, "0"), (500, "500"), (2_000, "2 k"), (1_500_000, "1.5 M"), (3e9, "3 G"), (0.002, "0.002")])
def test_an_axis_says_numbers_shortly(value: float, said: str) -> None:
    assert plots.count(value) == said


def test_a_drawing_has_no_colour_of_its_own_and_ids_of_its_own(tmp_path: Path) -> None:
    found = evolution(grown_run(tmp_path / "r"))
    chart = plots.loss_chart(found.record, found.corpus)
    one, other = (plots.svg(chart, plots.WIDE, name) for name in ("one", "other"))
    for text, name in ((one, "one"), (other, "other")):
        known = re.findall(r'\bid="([^"]*)"', text)
        assert known and all(found.startswith(f"{name}-") for found in known) and len(set(known)) == len(known)
        assert not set(re.findall(r'(?:href="#|url\(#)([^")]*)', text)) - set(known)
        assert not re.search(r"#[0-9a-f]{6}|http|<style|<metadata|<script", text)
    assert plots.svg(chart, plots.WIDE, "one") == one and plots.png(chart) == plots.png(chart)


# --- the page ---------------------------------------------------------------------------------------------------------------------------

ALLOWED = set(
    """html head meta title link style body main header section h1 h2 h3 p dl div dt dd ul ol li b i strong small mark q span pre code
    figure figcaption article blockquote table caption thead tbody tr th td details summary svg g path text defs use clippath rect
    tspan""".split()  # noqa: SIM905
)


class Reader(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.data: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def check_page(text: str) -> Reader:
    """The page's parts, after the laws that hold for every page."""
    read = Reader(text)
    assert not read.tags - ALLOWED and not read.open and not read.unbalanced
    assert not [name for name, _ in read.attributes if name.startswith("on") or name in ("src", "srcset", "action", "formaction")]
    links = [value for name, value in read.attributes if name in ("href", "xlink:href")]
    assert all(value.startswith(("#", "data:,")) for value in links)
    assert len(set(read.ids)) == len(read.ids)
    assert "http:" not in "".join(value for _, value in read.attributes) and "@import" not in text and "url(http" not in text
    drawings = [value for name, value in read.attributes if name == "aria-label"]
    assert all(len(value) > 10 for value in drawings) and (drawings or "svg" not in read.tags)
    assert len(text.encode()) < MOST_BYTES and not set(map(ord, text)) & ({*range(0x20), *range(0x7F, 0xA0)} - {10})
    return read


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    written = []
    for name in ("one/made", "other/made"):
        html, pictures = write_report(evolution(grown_run(tmp_path / name)))
        written.append([path.read_bytes() for path in (html, *pictures)])
    again, _ = write_report(evolution(tmp_path / "one/made"))
    assert again.read_bytes() == written[0][0]
    text = written[0][0].decode()
    assert written[0] == written[1] and str(tmp_path) not in text
    check_page(text)


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    found = evolution(grown_run(tmp_path / "r"))
    text = " ".join("".join(check_page(page(found)).data).split())
    for part in (
        "bits per byte",
        "nats per token",
        "Shall I go on?",
        "Once upon a time",
        "word order",
        "above chance from 100",
        "positron train",
    ):
        assert part in text
    assert "wrong: " in text and "a red ball, not a ball red" in text  # what a skill asks
    assert "cpu (2 cores, Testchip 9) in fp32" in text
    assert "Grammar emerging" in text and "Cause and feeling emerging" in text and "Keeping track" not in text


def test_no_word_is_said_without_a_skill_that_supports_it(tmp_path: Path) -> None:
    guessing = [skill(step, name, 100) for step in (0, 100) for names in AREAS.values() for name in names]
    for skills in (guessing, []):
        found = evolution(write_run(tmp_path / f"r{len(skills)}", metrics=[metric(100, 3.0, 1.5)], skills=skills))
        text = page(found)
        assert "emerging" not in text and ">firm<" not in text and found.claims == ()


def test_what_twice_the_tokens_would_give_is_said_only_while_the_rate_is_constant(tmp_path: Path) -> None:
    assert "would lead to about" in page(evolution(grown_run(tmp_path / "open")))
    falling = {"kind": "schedule", "step": 0, "warmup_steps": 20, "cooldown_steps": 250, "horizon": 400}
    found = evolution(grown_run(tmp_path / "done", events=[falling]))
    assert found.advice.improving.answer and "would lead to about" not in page(found)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"metrics": [metric(1, 6.0)]},
        {"metrics": [metric(1, 6.0, 3.0)]},
        {"metrics": [metric(step, 6.0, 3.0) for step in (1, 2, 3, 4)]},  # a flat curve
        {"samples": [sample(0, "")]},
        {"skills": [skill(0, "a_skill_of_the_future", 3, 4)]},
        {"kind": "sft", "identity": {"base": "c" * 64}, "metrics": [metric(1, 2.0, 1.0)]},
        {"metrics": [metric(1, 6.0, 3.0)], "happened": [{"kind": "changed", "step": 1, "text": "threads was 1, now 2"}]},
    ],
    ids=["nothing", "one step", "one validation", "flat", "an empty sample", "an unknown skill", "fine-tuning", "an event"],
)
def test_a_run_with_little_in_it_has_a_page_too(tmp_path: Path, parts: dict[str, Any]) -> None:
    folder = write_run(tmp_path / "r", **parts)
    html, _ = write_report(evolution(folder))
    read = check_page(html.read_text())
    assert ("threads was 1, now 2" in "".join(read.data)) == ("happened" in parts)


@pytest.mark.filterwarnings("ignore:Glyph")  # no font has them all
def test_what_a_model_or_a_file_says_is_never_obeyed(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "<b onclick=x>",
        metrics=[metric(1, 3.0, 1.5)],
        samples=[sample(0, HOSTILE, HOSTILE), sample(1, HOSTILE + " more of it")],
        skills=[skill(step, HOSTILE, 180) for step in (0, 1)],
        config={"config": HOSTILE, "dataset_path": HOSTILE, "out_dir": HOSTILE},
        device={"device": HOSTILE, "precision": HOSTILE, "reason": HOSTILE},
        versions={"torch": HOSTILE},
        command=f"positron {shlex.quote(HOSTILE)}",
    )
    html, pictures = write_report(evolution(run))
    assert "script" not in check_page(html.read_text()).tags and "skills.png" in {path.name for path in pictures}
    result = positron("report", "--run", run)
    assert result.code == 0 and not set(map(ord, result.out)) & {0x1B, 0x07, 0x202E, 0x85}


@given(st.text(alphabet=st.characters()))
def test_escaped_text_is_text(text: str) -> None:
    shown = esc(text)
    assert not set(shown) & set("<>\"'") and (shown.encode("utf-8") or not text)
    assert all(c in "\n\t" or (ord(c) >= 0x20 and not 0x7F <= ord(c) < 0xA0) for c in visible(text))


def test_the_time_that_scoring_took_is_counted_once_for_each_milestone(tmp_path: Path) -> None:
    scored = [
        {"kind": "skills", "step": step, "seconds": seconds, "tokens": 9}
        for step, seconds in ((0, 8.0), (100, 50.0), (100, 12.0), (200, 9.0))
    ]
    run = grown_run(tmp_path / "r", 100, happened=scored)  # step 100 was trained twice, step 200 was not reached again
    assert read_run(run).scoring_s == (8.0, 12.0) and "20 s for 2 milestones, 20.0% of the time" in page(evolution(run))


@pytest.mark.parametrize("rising", [14, 15, 16, 20])
def test_a_long_run_in_which_many_skills_rise_shows_its_first_and_last_step(tmp_path: Path, rising: int) -> None:
    steps = range(0, 2_500, 100)
    rows = [skill(step, f"skill_{i}", 190 if step > 100 * i else 100) for step in steps for i in range(rising)]
    text = page(evolution(write_run(tmp_path / "r", metrics=[metric(2_400, 2.0)], skills=rows)))
    heads = re.findall(r'<th scope="col"[^>]*>([\d,]+)</th>', text)
    assert heads[0] == "0" and heads[-1] == "2,400" and {f"{100 * i + 100:,}" for i in range(rising)} <= set(heads)


def test_a_very_long_run_still_fits(tmp_path: Path) -> None:
    steps = range(0, 40_000, 500)
    run = write_run(
        tmp_path / "r",
        metrics=[metric(step, 3.0 + 1 / step, 1.5 if step % 100 == 0 else None) for step in range(1, 40_001, 4)],
        samples=[sample(step, " ".join(str(i * step) for i in range(800)), prompt) for step in steps for prompt in ("a", "b", "c")],
        skills=[skill(step, name, 150) for step in steps for names in AREAS.values() for name in names],
    )
    html, _ = write_report(evolution(run))
    check_page(html.read_text())


def test_a_matplotlibrc_of_the_current_folder_starts_nothing_and_changes_nothing(empty: Path) -> None:
    draw = "from positron_mini.report import plots; import sys; d = lambda f, p: f.text(0, 0, 'a'); "
    draw += "sys.stdout.buffer.write(plots.png(d, (1, 1)) + plots.svg(d, (1, 1), 'x').encode())"
    call = [sys.executable, "-P", "-c", draw]
    before = subprocess.run(call, capture_output=True, check=True).stdout
    for name in ("latex", "dvipng"):
        Path(name).write_text(f"#!/bin/sh\ntouch {empty}/started\nexit 1\n", encoding="utf-8")
        Path(name).chmod(0o755)
    Path("matplotlibrc").write_text("text.usetex: True\nsavefig.facecolor: red\nfigure.facecolor: red\nfont.weight: bold\n", "utf-8")
    environment = {**os.environ, "PATH": f"{empty}:{os.environ['PATH']}"}
    assert subprocess.run(call, capture_output=True, check=True, env=environment).stdout == before
    assert not Path("started").exists()


# --- the command ------------------------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_the_pictures(workshop: Path) -> None:
    result = positron("report", "--run", "runs/base").ok()
    for name in ("report.html", "report/loss.png", "report/bits_per_byte.png", "report/throughput.png"):
        assert f"{Path(name).name}" in result.out and Path("runs/base", name).stat().st_size > 1_000
    assert "bits per byte" in result.out and "next:" in result.out
    check_page(Path("runs/base/report.html").read_text())


@pytest.mark.parametrize("words", [(), ("--run", "runs/base/latest"), ("--run", "runs/base/step_000020")])
def test_without_a_name_it_reports_on_the_newest_run_and_a_step_names_its_run(workshop: Path, words: tuple[str, ...]) -> None:
    result = positron("report", *words, "--json")
    value = json.loads(result.out)
    assert result.code == 0 and value["step"] == 30 and value["html"] == "runs/base/report.html"
    assert value["references"]["uniform"]["loss"] == pytest.approx(math.log(512)) and value["advice"]["improving"]["answer"] in (
        True,
        False,
        None,
    )


@pytest.mark.parametrize("words", [("--run", "runs/none"), ("--run", "text.txt")])
def test_what_is_no_run_is_one_sentence(workshop: Path, words: tuple[str, ...]) -> None:
    result = positron("report", *words)
    assert result.code == 1 and "no run" in result.sentence and "runs/base" in result.hint


def test_without_any_run_it_says_how_to_make_one(empty: Path) -> None:
    result = positron("report")
    assert result.code == 1 and "no run" in result.sentence and "positron train" in result.hint


def test_a_report_on_a_run_that_goes_on_trains_nothing_and_is_made_anew(workshop: Path) -> None:
    assert tiny_train("runs/mine", "--until_step", "3").code == 0 and positron("report", "--run", "runs/mine").code == 0
    assert tiny_train("runs/mine", "--until_step", "6").code == 0 and positron("report", "--run", "runs/mine").code == 0
    assert tiny_train("hand/mine", "--until_step", "3").code == 0 and tiny_train("hand/mine", "--until_step", "6").code == 0
    assert_same_run(Path("hand/mine"), Path("runs/mine"))


# --- the short form ---------------------------------------------------------------------------------------------------------------------


def test_the_short_form_has_two_samples_and_the_three_skills_that_moved_most(tmp_path: Path) -> None:
    lines = short_form(grown_run(tmp_path / "r"), since=100)
    text = "\n".join(lines)
    assert len([line for line in lines if line.startswith("[step 400] ")]) == 2
    assert len([line for line in lines if "->" in line]) == 3 and "step 100 to 400" in text and "still improving" in text
    assert "agreement near" in text and "feelings" in text and "not above chance" in text


def test_a_chunk_without_a_milestone_says_nothing_about_skills(tmp_path: Path) -> None:
    assert not [line for line in short_form(grown_run(tmp_path / "r"), since=400) if "->" in line]
    assert short_form(write_run(tmp_path / "empty"), since=0) == []


def test_a_chunk_ends_with_the_short_form(workshop: Path) -> None:
    words = [*TINY, "--threads", "1", "--out_dir", "runs/mine"]
    assert positron("incremental", "20", *words).code == 0
    Path("runs/mine/skills.jsonl").write_text(
        "".join(json.dumps(skill(step, "tense", right)) + "\n" for step, right in ((0, 100), (20, 190)))
    )
    lines = short_form(Path("runs/mine"), 0)
    assert sum(line.startswith("[step 20] ") for line in lines) == 2 and any("->" in line for line in lines)
    result = positron("incremental", "5", *words)
    assert result.code == 0 and "loss (nats per token)" in result.out
    assert "->" not in result.out and "[step 20]" not in result.out  # the chunk from 20 to 25 met no milestone


# --- the README's section ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """benchmarks/evolution.py as a module."""
    return script_module("benchmarks/evolution.py")


def test_the_section_is_made_between_the_markers_and_twice_alike(empty: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    grown_run(Path("runs/made"))
    Path("README.md").write_text(f"# before\n\n{script.BEGIN}\nold words\n{script.END}\n\n# after\n")
    monkeypatch.setattr("sys.argv", ["evolution.py", "runs/made"])
    made = []
    for _ in range(2):
        script.main()
        made.append([Path("README.md").read_text(), Path("docs/results/evolution.md").read_text()])
    readme, results = made[0]
    assert made[0] == made[1] and readme.startswith("# before\n") and readme.endswith("# after\n") and "old words" not in readme
    assert "on cpu (2 cores, Testchip 9) in fp32, 2026-11-01. Validation went" in readme
    assert results.startswith(script.TITLE) and "| word order | 95.0% |" in results and "above chance from step" in results
    for text, folder in ((readme, Path()), (results, Path("docs/results"))):
        for link in re.findall(r"\]\(([^)]*)\)", text):
            assert (folder / link).is_file(), link


def test_a_page_without_markers_is_left_alone(empty: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    grown_run(Path("runs/made"), 100)
    Path("README.md").write_text("# mine\n")
    monkeypatch.setattr("sys.argv", ["evolution.py", "runs/made"])
    with pytest.raises(SystemExit, match=r"README.md has no place for it: add the lines"):
        script.main()
    assert Path("README.md").read_text() == "# mine\n" and not Path("docs").exists()


def test_what_must_not_be_committed_stops_the_script(tmp_path: Path, script: ModuleType) -> None:
    html, picture = tmp_path / "report.html", tmp_path / "loss.png"
    html.write_text("<p>runs/made</p>")
    picture.write_bytes(bytes(script.MOST_PICTURE_BYTES))
    script.check(html, [picture], ["runs/made"], [tmp_path, Path("/")])
    with pytest.raises(SystemExit, match="stands in the text"):
        script.check(html, [picture], [f"positron report --run {tmp_path}/runs"], [tmp_path])
    picture.write_bytes(bytes(script.MOST_PICTURE_BYTES + 1))
    with pytest.raises(SystemExit, match="700,001 bytes"):
        script.check(html, [picture], [], [])


@pytest.mark.parametrize("text", [HOSTILE, "a | b\n\n# c", "*x* _y_ [z](http://e.example) `c` <b>", "~~no~~ $x$ !"])
def test_a_sample_in_a_table_is_one_cell_of_plain_text(script: ModuleType, text: str) -> None:
    cell = script.escaped(text)
    assert "\n" not in cell and not re.search(r"(?<!\\)[|`*_\[\]$~!#]", cell) and "<" not in cell.replace("<br>", "")
