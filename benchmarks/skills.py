"""docs/results/skills.md: chance of untrained and counting models, two seeds side by side, what scoring costs, the stories they tell.

python benchmarks/skills.py runs/a runs/b [--timed runs/c] [--out docs/results/skills.md] [--cache data/cache]

Two finished runs that differ in the seed, with their text's tokens in the cache; what scoring costs is read from the log of --timed, a run
that had the computer to itself, or of these two. Without --out the page is printed. About five minutes.
"""

from __future__ import annotations

import argparse
import datetime
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from positron_mini.device import describe_versions, set_threads
from positron_mini.evaluate.pairs import PAIRS, SKILLS
from positron_mini.evaluate.skills import SkillResult, SkillTest, result_of, skill_test
from positron_mini.evaluate.story_metrics import COPIED_WORDS, LOOPED_WORDS, stories_suite
from positron_mini.files import write_text
from positron_mini.model import GPT
from positron_mini.report.corpus import COUNTED_TOKENS, bigram_probabilities, open_prepared, unigram_probabilities
from positron_mini.report.learned import binomial_tail, holm, title
from positron_mini.store.checkpoint import Checkpoint, load_model
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_history import RunHistory, read_run
from positron_mini.text.prepare import Prepared

UNTRAINED_SEEDS = 5
LEVEL = 0.01  # of each joint test

Points = dict[str, list[float]]


def main() -> None:
    """Measure, and write or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--timed", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    flags = parser.parse_args()
    set_threads(None)
    records = [read_run(flags.a), read_run(flags.b)]
    timed = [read_run(flags.timed)] if flags.timed else records
    text = page(records, [find_checkpoint(flags.a), find_checkpoint(flags.b)], timed, flags.cache)
    if flags.out:
        write_text(flags.out, text)
    else:
        print(text)


def page(records: Sequence[RunHistory], checkpoints: Sequence[Checkpoint], timed: Sequence[RunHistory], cache: Path) -> str:
    """The whole page."""
    prepared = open_prepared(records[0], cache)
    if prepared is None:
        raise SystemExit(f"the tokens of {records[0].name} are not in {cache}")
    test = skill_test(checkpoints[0].tokenizer)
    models = [load_model(checkpoint) for checkpoint in checkpoints]
    points = [test.points(model) for model in models]
    parts = [
        "# Skills, measured",
        f"This page tests the measure itself: {len(SKILLS)} skills, {PAIRS} minimal pairs of each, {test.tokens:,} tokens in all; "
        "`positron_mini/evaluate/pairs` has them.",
        f"{datetime.date.today().isoformat()}, {machine()}. Made by `benchmarks/skills.py`.",
        "## A model that knows nothing is at chance",
        chance(test, records[0], prepared),
        "## Two seeds",
        seeds(points, records),
        "## What it costs",
        costs(timed),
        "## Their stories",
        stories(models, checkpoints, prepared),
    ]
    return "\n\n".join(parts) + "\n"


def machine() -> str:
    """What this script runs on."""
    versions = describe_versions()
    return f"{versions['processor']}, fp32, torch {versions['torch']}"


# --- chance -----------------------------------------------------------------------------------------------------------------------------


def two_sided(right: float, pairs: int) -> float:
    """Probability of a result at least as far from one half when each pair is a coin: the exact binomial test."""
    far = abs(right - pairs / 2)
    return min(1.0, 2 * binomial_tail(math.ceil(pairs / 2 + far - 1e-9), pairs, 0.5)) if far > 0 else 1.0


def off_chance(results: Sequence[SkillResult]) -> set[str]:
    """The skills that are not at chance, together at LEVEL by Holm's correction."""
    return holm({r.skill: two_sided(r.accuracy * r.pairs, r.pairs) for r in results}, LEVEL)


def chance(test: SkillTest, record: RunHistory, prepared: Prepared) -> str:
    """Models that know nothing or count only, with a joint test of all skills."""
    assert record.shape is not None
    rows = []
    for seed in range(UNTRAINED_SEEDS):
        results = test.score(GPT(record.shape).init_weights(seed).eval())
        rows.append(_chance_row(f"untrained {record.config.get('config')}, seed {seed}", results))
    train = np.asarray(prepared.train.ids[:COUNTED_TOKENS]).astype(np.int64)
    unigram = unigram_probabilities(train, prepared.tokenizer.vocab_size)
    flat = [np.array(ids, np.int64) for texts in test.texts.values() for ids in texts]
    before, after = np.concatenate([ids[:-1] for ids in flat]), np.concatenate([ids[1:] for ids in flat])
    starts = np.cumsum([0, *(len(ids) - 1 for ids in flat)])[:-1]
    for name, found in (("unigram", unigram[after]), ("bigram", bigram_probabilities(train, unigram, before, after))):
        results = results_of(test.judged(np.add.reduceat(np.log(found), starts).tolist()))
        rows.append(_chance_row(f"{name} of the training text", results))
    heads = ["| model | right pairs | least and most of a skill | smallest p of a skill | not at chance |", "|---|---|---|---|---|"]
    local = ", ".join(title(name) for name, skill in SKILLS.items() if skill.is_local)
    note = (
        f"p: exact binomial test, two-sided. Not at chance: after Holm's correction over all skills, at {LEVEL:.0%} together. In every "
        "unit of two pairs each wording is right once and wrong once, so counting words gives exactly one half. Neighbouring words help "
        f"in {local}; the bigram shows how much."
    )
    return "\n".join([*heads, *rows, "", note])


def results_of(points: Points) -> list[SkillResult]:
    """The result of each skill."""
    return [result_of(skill, found) for skill, found in points.items()]


def _chance_row(name: str, results: Sequence[SkillResult]) -> str:
    shares = [r.accuracy for r in results]
    right, pairs = sum(r.accuracy * r.pairs for r in results), sum(r.pairs for r in results)
    least = min(two_sided(r.accuracy * r.pairs, r.pairs) for r in results)
    off = ", ".join(title(skill) for skill in sorted(off_chance(results))) or "none"
    return f"| {name} | {right / pairs:.1%} | {min(shares):.1%}, {max(shares):.1%} | {_p(least)} | {off} |"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "below 0.001"


# --- seeds ------------------------------------------------------------------------------------------------------------------------------


def seeds(points: Sequence[Points], records: Sequence[RunHistory]) -> str:
    """The skills of both runs at their ends, on the same pairs; McNemar's exact test on those that only one of them has right."""
    one, other = (results_of(found) for found in points)
    tests = {skill: mcnemar(points[0][skill], points[1][skill]) for skill in points[0]}
    unlike = holm(tests, LEVEL)
    rows, apart = [], []
    for a, b in zip(one, other, strict=True):
        meet = a.low <= b.high and b.low <= a.high
        apart += [] if meet else [title(a.skill)]
        shares = " | ".join(f"{r.accuracy:.1%} ({r.low:.1%} to {r.high:.1%})" for r in (a, b))
        rows.append(f"| {title(a.skill)} | {shares} | {'yes' if meet else 'no'} | {_p(tests[a.skill])} |")
    names = [f"seed {record.config.get('seed')}" for record in records]
    last = [record.validations[-1] for record in records]
    bits = " and ".join(f"{row.val_bpb:.3f}" for row in last)
    name, read = records[0].config.get("config"), records[0].reports[-1].tokens
    summary = (
        f"{name}, {records[0].step:,} steps, {read:,} tokens each: {bits} bits per byte. "
        f"The 95 % intervals of {len(rows) - len(apart)} of {len(rows)} skills meet{'; apart: ' + ', '.join(apart) if apart else ''}. "
        f"McNemar's exact test on the same pairs, Holm's correction at {LEVEL:.0%} together, tells the seeds apart in: "
        f"{', '.join(title(skill) for skill in sorted(unlike)) or 'none'}. It is stricter than comparing intervals: both runs answered "
        "the same pairs, so the choice of pairs drops out and only the effect of the seed remains."
    )
    heads = [f"| skill | {names[0]} | {names[1]} | intervals meet | p |", "|---|---|---|---|---|"]
    return "\n".join([summary, "", *heads, *rows])


def mcnemar(one: Sequence[float], other: Sequence[float]) -> float:
    """Probability of so uneven a count among the pairs that only one of the two has right, were either equally likely. McNemar 1947."""
    only = [a > b for a, b in zip(one, other, strict=True) if a != b]
    return two_sided(sum(only), len(only)) if only else 1.0


# --- cost and stories -------------------------------------------------------------------------------------------------------------------


def costs(records: Sequence[RunHistory]) -> str:
    """What scoring took in each run, by its own log."""
    rows = []
    for record in records:
        seconds, elapsed = record.scoring_s, record.reports[-1].elapsed_s
        pairs = sorted({row.pairs for row in record.skills})
        others, all_of_it = sum(seconds[1:]) / max(len(seconds) - 1, 1), sum(seconds)
        rows.append(
            f"| {record.config.get('config')}, {record.step:,} steps, seed {record.config.get('seed')} | {len(seconds)} | "
            f"{', '.join(map(str, pairs))} | {seconds[0]:.1f} s | {others:.1f} s | "
            f"{all_of_it:.1f} s of {elapsed:,.0f} s | {all_of_it / elapsed:.1%} |"
        )
    heads = [
        "| run | milestones | pairs of each skill | the first, pairs made and encoded | each of the others | all | share |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*heads, *rows])


def stories(models: Sequence[GPT], checkpoints: Sequence[Checkpoint], prepared: Prepared) -> str:
    """The story metrics of both, beside held-out stories."""
    found = [stories_suite(model, checkpoint, prepared) for model, checkpoint in zip(models, checkpoints, strict=True)]
    names = [name for name in found[0]["measures"] if name in found[0]["held_out"]]
    measured = [*(f["measures"] for f in found), found[0]["held_out"]]
    rows = [" | ".join((f"| {name.replace('_', ' ')}", *(f"{values[name]:.2f}" for values in measured))) + " |" for name in names]
    for kind in found[0]["by_kind"]:
        shares = " | ".join(f"{f['by_kind'][kind]['accuracy']:.0%}" for f in found)
        rows.append(f"| stories: {kind.replace('_', ' ')} | {shares} | |")
    read = f"{found[0]['indexed_bytes'] / 1e6:.1f} MB"
    note = (
        f"{found[0]['items']} stories each, without a prompt, temperature 0.7; means. Held-out stories are of the same text, measured in "
        f"the same way; copies are searched in the {read} of the training text. Varied: no run of {LOOPED_WORDS} words occurs twice; "
        f"own words: no run of {COPIED_WORDS} words occurs in the training text."
    )
    return "\n".join([note, "", "| measure | first run | second run | held-out stories |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    main()
