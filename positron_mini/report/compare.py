"""Two runs or checkpoints side by side: settings, curves at equal tokens and equal time, skills, samples from the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from positron_mini.config import SampleConfig
from positron_mini.errors import Say
from positron_mini.evaluate.skills import skill_test
from positron_mini.generate import generate
from positron_mini.model import GPT
from positron_mini.report.learned import Move, skill_lines
from positron_mini.store.checkpoint import Checkpoint
from positron_mini.store.find import find_model
from positron_mini.store.run_history import RunHistory, read_run
from positron_mini.store.run_logs import SkillScore, StepReport
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import BOS

ROWS = 8  # of a table of curves
SET_ASIDE = ("out_dir", "track")  # settings that do not change a model


@dataclass(frozen=True)
class Side:
    """One of the two: the name given, its checkpoint, and its run up to that step (None for a step folder outside a run)."""

    given: str
    checkpoint: Checkpoint
    record: RunHistory | None

    @property
    def step(self) -> int | None:
        """The checkpoint's step."""
        return self.checkpoint.step

    @property
    def label(self) -> str:
        """The name given, and the step."""
        return self.given if self.step is None else f"{self.given} at step {self.step:,}"


def open_side(given: str, say: Say) -> tuple[Side, GPT]:
    """The checkpoint that `given` names and its run, and its model. Errors: CheckpointError, RunError."""
    checkpoint, model = find_model(given, say=say)
    run = checkpoint.folder.resolve().parent
    is_of_run = checkpoint.step is not None and (run / "run.json").is_file()
    return Side(given, checkpoint, read_run(run, until=checkpoint.step) if is_of_run else None), model


# --- settings ---------------------------------------------------------------------------------------------------------------------------


def settings(side: Side) -> dict[str, Any]:
    """All settings by name: the shape, and for a run its settings, schedule, text, device and versions."""
    shape = {**asdict(side.checkpoint.config), "parameters": side.checkpoint.config.parameters}
    found = {**shape, "tokenizer": side.checkpoint.tokenizer.fingerprint[:16], "step": side.step}
    record = side.record
    if record is None:
        return found
    schedule = asdict(record.schedule)
    config = {name: value for name, value in record.config.items() if name not in SET_ASIDE and name not in found}
    texts = {name: str(record.identity[name])[:16] for name in ("text", "data", "base") if record.identity.get(name)}
    newest = {"tokens": record.reports[-1].tokens, "elapsed_s": record.reports[-1].elapsed_s} if record.reports else {}
    device = {name: record.device.get(name) for name in ("device", "precision")}
    return {**found, **newest, **config, **schedule, **texts, **device, **record.versions}


def differences(a: Side, b: Side) -> list[tuple[str, Any, Any]]:
    """The settings in which the two differ, as (name, a's, b's); None if one has no such setting."""
    one, other = settings(a), settings(b)
    return [(name, one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]


# --- curves -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crossing:
    """Bits per byte of both at the same number of tokens or seconds."""

    at: float
    a: float
    b: float


def crossings(a: RunHistory | None, b: RunHistory | None, axis: Callable[[StepReport], float], most: int = ROWS) -> list[Crossing]:
    """The points where a validation of one lies between validations of the other: at most `most`, spread over the shared range.

    The other's value there is interpolated linearly over the logarithm of the axis.
    """
    if a is None or b is None:
        return []
    first, second = (_points(record, axis) for record in (a, b))
    if not first or not second:
        return []
    low, high = max(first[0][0], second[0][0]), min(first[-1][0], second[-1][0])
    places = sorted({x for x, _ in (*first, *second) if low <= x <= high})
    if len(places) > most:
        places = sorted({places[round(i * (len(places) - 1) / (most - 1))] for i in range(most)})
    return [Crossing(x, _between(first, x), _between(second, x)) for x in places]


def _points(record: RunHistory, axis: Callable[[StepReport], float]) -> list[tuple[float, float]]:
    return [(axis(row), row.val_bpb) for row in record.validations if row.val_bpb is not None and axis(row) > 0]


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The interpolated value at `x`, which lies within the points."""
    for (left, y), (right, z) in pairwise(points):
        if left <= x <= right:
            share = (math.log(x) - math.log(left)) / (math.log(right) - math.log(left)) if right > left else 0.0
            return y + share * (z - y)
    return points[-1][1]


def equal_tokens(a: Side, b: Side) -> list[Crossing]:
    """The crossings at equal numbers of tokens read."""
    return crossings(a.record, b.record, lambda row: float(row.tokens))


def equal_time(a: Side, b: Side) -> list[Crossing]:
    """The crossings at equal seconds of training."""
    return crossings(a.record, b.record, lambda row: row.elapsed_s)


def cautions(a: Side, b: Side) -> list[str]:
    """Reasons why the figures of the two may not be comparable."""
    found = []
    if a.record is None or b.record is None:
        found.append("a folder that lies outside its run has no curves")
        return found
    if a.record.kind != b.record.kind:
        found.append(f"A is a {a.record.kind} run and B a {b.record.kind} run: their validations are of different things")
    elif a.record.identity.get("text") != b.record.identity.get("text"):
        found.append("the texts differ, and with them the validation stories: bits per byte are not of the same text")
    elif a.checkpoint.tokenizer.fingerprint != b.checkpoint.tokenizer.fingerprint:
        found.append("the tokenizers differ: tokens are not of the same length; bits per byte do not depend on that")
    if a.record.device.get("device") != b.record.device.get("device"):
        found.append("the devices differ: equal time is not equal work")
    return found


# --- skills and samples -----------------------------------------------------------------------------------------------------------------


def skill_moves(a: Side, b: Side, models: tuple[GPT, GPT], say: Say) -> list[Move]:
    """Each skill of both, largest difference first. Skills that a run has not measured are scored now."""
    first, second = (_scores(side, model, say) for side, model in zip((a, b), models, strict=True))
    found = [Move(skill, first[skill], second[skill]) for skill in first if skill in second]
    return sorted(found, key=lambda move: (-abs(move.gain), move.skill))


def _scores(side: Side, model: GPT, say: Say) -> dict[str, SkillScore]:
    if side.record is not None and side.record.skills:
        return {line.skill: line.newest for line in skill_lines(side.record.skills)}
    test = skill_test(side.checkpoint.tokenizer)
    say(f"scoring the skills of {side.label}: {test.tokens:,} tokens")
    results = test.score(model)
    return {r.skill: SkillScore(side.step or 0, r.skill, r.accuracy, r.low, r.high, r.pairs) for r in results}


@dataclass(frozen=True)
class Twin:
    """The texts of both for the same prompt and seed."""

    prompt: str
    seed: int
    a: str
    b: str


def twins(a: Side, b: Side, models: tuple[GPT, GPT], prompts: Sequence[str], sampling: SampleConfig) -> list[Twin]:
    """A continuation of each prompt by both, each prompt with its own seed; an answer if both are chat models."""
    is_chat = a.checkpoint.is_chat and b.checkpoint.is_chat
    found = []
    for i, prompt in enumerate(prompts):
        config = replace(sampling, seed=sampling.seed + i)
        one, other = (
            generate(model, side.checkpoint.tokenizer, _prompt_ids(side, prompt, is_chat), config, end_ids=side.checkpoint.end_ids)[0].text
            for side, model in zip((a, b), models, strict=True)
        )
        found.append(Twin(prompt, config.seed, one, other))
    return found


def _prompt_ids(side: Side, prompt: str, is_chat: bool) -> list[int]:
    tokenizer = side.checkpoint.tokenizer
    if is_chat:
        return encode_chat(tokenizer, [Message("user", prompt)], add_generation_prompt=True).ids
    return [BOS, *tokenizer.encode(prompt)]


def default_prompts(a: Side, b: Side) -> tuple[tuple[str, ...], SampleConfig]:
    """The prompts and the sampling of the runs' own milestones."""
    if a.checkpoint.is_chat and b.checkpoint.is_chat:
        from positron_mini.train import finetune as sft

        return sft.QUESTIONS, sft.SAMPLING
    from positron_mini.train import pretrain

    return pretrain.PROMPTS, pretrain.SAMPLING


@dataclass(frozen=True)
class Comparison:
    """All results of `positron compare`."""

    a: Side
    b: Side
    settings: list[tuple[str, Any, Any]]
    tokens: list[Crossing]
    time: list[Crossing]
    skills: list[Move]
    samples: list[Twin]
    cautions: list[str]

    def summary(self) -> dict[str, Any]:
        """The comparison as plain values, for --json."""
        return {
            "a": self.a.label,
            "b": self.b.label,
            "settings": [{"name": name, "a": one, "b": other} for name, one, other in self.settings],
            "equal_tokens": [{"tokens": round(row.at), "a": row.a, "b": row.b} for row in self.tokens],
            "equal_time": [{"seconds": row.at, "a": row.a, "b": row.b} for row in self.time],
            "skills": [
                {"skill": move.skill, "a": _plain(move.before), "b": _plain(move.after), "is_clear": move.is_clear} for move in self.skills
            ],
            "samples": [asdict(twin) for twin in self.samples],
            "cautions": self.cautions,
        }


def _plain(score: SkillScore) -> dict[str, Any]:
    return {name: value for name, value in asdict(score).items() if name != "skill"}


def compare(given_a: str, given_b: str, *, prompts: Sequence[str], seed: int | None, max_tokens: int | None, say: Say) -> Comparison:
    """Compare two. `prompts` empty, `seed` or `max_tokens` None: as for the milestones. Errors: CheckpointError, RunError."""
    (a, model_a), (b, model_b) = open_side(given_a, say), open_side(given_b, say)
    usual, sampling = default_prompts(a, b)
    sampling = sampling if seed is None else replace(sampling, seed=seed)
    sampling = sampling if max_tokens is None else replace(sampling, max_tokens=max_tokens)
    models = (model_a, model_b)
    skills = [] if a.checkpoint.is_chat or b.checkpoint.is_chat else skill_moves(a, b, models, say)
    samples = twins(a, b, models, tuple(prompts) or usual, sampling)
    return Comparison(a, b, differences(a, b), equal_tokens(a, b), equal_time(a, b), skills, samples, cautions(a, b))
