"""Pretraining as a task: windows of a text as rows, held-out documents for validation, story openings and skills at milestones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from positron_mini.config import DEFAULT_TEXT, SampleConfig, TrainConfig, is_milestone, parse_milestones, preset
from positron_mini.distributed import Processes
from positron_mini.errors import DataError, Say
from positron_mini.evaluate.bits import Score, score_documents
from positron_mini.evaluate.skills import RunTests, run_tests, skill_test
from positron_mini.export.card import step_card
from positron_mini.generate import milestone_samples
from positron_mini.model import GPT
from positron_mini.optim import MOMENTUM_WARMUP
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.opening import STORY, openings
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import StepReport
from positron_mini.store.run_record import RunRecord
from positron_mini.text import tokens
from positron_mini.text.prepare import Prepared, prepare_corpus
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.train.find_run import pretraining_identity, same_run, wanted_vocab
from positron_mini.train.plan import Plan
from positron_mini.train.settings import Settings
from positron_mini.train.speed import time_lines
from positron_mini.trainer import Batch, BatchSource, Trainer

PROMPTS = ("Once upon a time, there was a little girl who", "One day, a boy named Tim", "The dog was sad because")
SAMPLING = SampleConfig(max_tokens=80, temperature=0.7, seed=42)
EVALUATION_SHARE = 0.15  # of the tokens between two validations: a forward pass costs a third of a step, so that is 5 % of the time


class TokenBatches:
    """Windows of a token file as rows; the targets are the same windows, one token later.

    In the first `short_steps` steps each window is read as two rows of half its length: the same tokens, but attention reaches less far,
    which learns faster at first. The tokens of a step are the same either way. If the starts of `documents` are given, all rows begin with
    documents instead (`tokens.document_rows`).
    """

    def __init__(
        self,
        ids: Any,
        seed: int,
        rows: int,
        context_len: int,
        short_steps: int = 0,
        check: Callable[[], None] = lambda: None,
        documents: Any = None,
    ) -> None:
        self.ids, self.seed, self.rows, self.context_len, self.check = ids, seed, rows, context_len, check
        self.short_steps = short_steps if context_len % 2 == 0 else 0
        self.windows = tokens.window_count(len(ids), context_len)
        widths = {context_len, context_len // 2} if self.short_steps else {context_len}
        self._starts = {width: tokens.document_rows(documents, len(ids), width) for width in widths} if documents is not None else {}

    def batch(self, step: int) -> Batch:
        """Rows of the update after `step` finished ones, (R, T). Errors: those of `check`, for the file of `ids`."""
        self.check()
        width = self.context_len // 2 if step < self.short_steps else self.context_len
        if self._starts:
            count, starts = self.rows * self.context_len // width, self._starts[width]
            rows = tokens.rows_at(self.ids, starts[tokens.step_windows(self.seed, step, count, len(starts))], width)
        else:
            rows = tokens.gather(self.ids, tokens.step_windows(self.seed, step, self.rows, self.windows), self.context_len)
        whole = torch.from_numpy(rows)  # (R, T + 1)
        return Batch(whole[:, :-1].reshape(-1, width), whole[:, 1:].reshape(-1, width))


def prepare_text(config: TrainConfig, run: RunFolder, recorded: RunRecord | None, say: Say) -> Prepared:
    """Prepare tokens and tokenizer of the text that `config` names. Raise DataError if there is none, RunError if the run has another text.
    """
    source = Path(config.dataset_path or DEFAULT_TEXT)
    if config.dataset_path is None and not source.exists():
        raise DataError(
            f"{source}: no such file, and no --dataset_path was given",
            "positron prepare --dataset tinystories   or   --dataset_path YOUR.txt",
        )

    def check_content(content: str) -> None:
        if recorded is not None:
            same_run(run, recorded, {"text": content})

    context = config.context_len or preset(config.config).context_len
    path = Path(config.tokenizer_path) if config.tokenizer_path else None
    vocab = config.vocab_size if path is not None and path.exists() else wanted_vocab(config)
    return prepare_corpus(source, tokenizer_path=path, vocab_size=vocab, min_train_tokens=context + 1, check_content=check_content, say=say)


@dataclass(frozen=True)
class Pretraining:
    """A Task: a new model learns a prepared text."""

    config: TrainConfig
    settings: Settings
    prepared: Prepared
    processes: Processes
    horizon: int | None = None  # decides which skills milestones test; fixed, while a budget moves the run's horizon

    kind = "pretrain"
    momentum_warmup = MOMENTUM_WARMUP
    scores_first = False
    points_best = False

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the text."""
        return self.prepared.tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that make two commands the same run."""
        return pretraining_identity(self.config, self.settings.shape, self.prepared)

    @property
    def facts(self) -> dict[str, Any]:
        """Share of the targets that cost nothing to predict: the bos after every eos."""
        return {"bos_share": round(self.prepared.report["train_stories"] / self.prepared.train.count, 6)}

    def model(self) -> GPT:
        """A new model, initialised from the seed."""
        return GPT(self.settings.shape).init_weights(self.config.seed, self.config.embedding_std, self.config.copy_init)

    def batches(self) -> BatchSource:
        """Windows of the token file."""
        train, settings = self.prepared.train, self.settings
        documents = train.documents()[:, 0] if self.config.align_rows else None
        return TokenBatches(
            train.ids,
            self.config.seed,
            settings.rows,
            settings.shape.context_len,
            settings.short_steps,
            train.check_unchanged,
            documents,
        )

    @cached_property
    def held_out(self) -> tuple[list[list[int]], list[int]]:
        """Validation documents and their bytes: as many as fit into 5 % of the time."""
        return validation_subset(self.prepared, int(EVALUATION_SHARE * self.settings.eval_every * self.settings.step_tokens))

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """Prompts of the milestone samples."""
        return milestone_prompts([self.tokenizer.decode(document) for document in self.held_out[0]])

    def evaluate(self, model: GPT) -> Score:
        """Loss of the held-out documents, each process scoring its share."""
        mine = slice(self.processes.rank, None, self.processes.size)
        documents, byte_counts = self.held_out
        choice = self.settings.choice
        part = score_documents(model, documents[mine], byte_counts[mine], device=choice.device, precision=choice.precision)
        nats, *counts = self.processes.sums([part.nats, part.tokens, part.bytes, part.documents])
        return Score(nats, *map(int, counts))

    def observe(self, run: RunFolder, model: GPT, step: int, *, is_end: bool) -> None:
        """Write samples, and the skill scores that are due at this step."""
        texts = milestone_samples(model, self.tokenizer, self.prompts, SAMPLING)
        for i, (prompt, text) in enumerate(zip(self.prompts, texts, strict=True)):
            sample = {"step": step, "prompt": prompt, "text": text, "seed": SAMPLING.seed + i, "temperature": SAMPLING.temperature}
            run.log("samples", sample)
        began = time.monotonic()
        tests = milestone_skills(self.tokenizer, parse_milestones(self.config.milestones), self.settings.step_tokens, self.horizon)
        test = tests.end if is_end else tests.milestone
        if test is None:
            return
        for result in test.score(model, device=self.settings.choice.device, precision=self.settings.choice.precision):
            run.log("skills", result.record(step))
        run.log("events", {"kind": "skills", "step": step, "seconds": round(time.monotonic() - began, 3), "tokens": test.tokens})

    def texts(self, run: RunFolder, step: int, seen: int, report: StepReport | None) -> dict[str, bytes]:
        """Files of a base model's folder."""
        facts = {"step": f"{step:,}", "training tokens": f"{seen:,}", "text": Path(self.config.dataset_path or DEFAULT_TEXT).name}
        if report is not None and report.val_bpb is not None:
            facts["validation"] = f"{report.val_loss:.3f} nats per token, {report.val_bpb:.3f} bits per byte"
        shape = self.settings.shape
        card = step_card(run.path.name, shape, facts, is_chat=False)
        return ckpt.model_files(shape, self.tokenizer, chat_template=None, card=card)

    def lines(self, run: RunFolder, trainer: Trainer, plan: Plan) -> list[str]:
        """First lines of a run: model, text, device and why, a step and how it is computed, the expected time."""
        config, shape, prepared = self.config, self.settings.shape, self.prepared
        lines = [
            f"model      {config.config}, {shape.parameters:,} parameters, {shape.vocab_size:,} pieces, context {shape.context_len}",
            f"text       {prepared.train.count:,} training tokens, {prepared.validation.count:,} for validation",
            *self.settings.lines(config, self.processes.size),
        ]
        if plan.say:
            lines.append(f"run        {plan.say}")
        if trainer.step:
            lines.append(f"run        going on from step {trainer.step:,} of {run.path}")
        return lines + time_lines(trainer.model, self.settings, plan, self.processes.size)


@lru_cache(maxsize=1)  # made at the first milestone and reused
def milestone_skills(tokenizer: Tokenizer, milestones: frozenset[int] | None, step_tokens: int, horizon: int | None) -> RunTests:
    """The pairs that score a run at every milestone and at its end: as many as fit the time.

    The time is counted in tokens, not by the clock, so that a resumed run scores the same pairs. Without a horizon, the last named
    milestone or step 1,000 counts as the end.
    """
    last = max({1_000} | (milestones or set())) if horizon is None else horizon
    scorings = sum(is_milestone(step, milestones) or step == horizon for step in range(last + 1))
    return run_tests(skill_test(tokenizer), last * step_tokens, scorings)


def milestone_prompts(documents: Sequence[str]) -> tuple[str, ...]:
    """Prompts of a run's samples: story prompts if one of the documents is a story, else the first words of documents."""
    is_stories = any(text.startswith(STORY) for text in documents)
    return PROMPTS if is_stories else openings(documents, len(PROMPTS)) or PROMPTS


def validation_subset(prepared: Prepared, most_tokens: int) -> tuple[list[list[int]], list[int]]:
    """The first validation documents that fit `most_tokens` (at least 4,096, at most 200,000), as ids, and the bytes of their texts."""
    limit = min(max(most_tokens, 4_096), 200_000)
    documents: list[list[int]] = []
    for start, end in prepared.validation.documents():
        if documents and sum(map(len, documents)) + end - start > limit:
            break
        documents.append(prepared.validation.ids[start:end].tolist())
    return documents, [len(prepared.tokenizer.decode(document).encode()) for document in documents]
