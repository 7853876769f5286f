"""From a configuration to a run that trains: tokenizer, tokens, model, Trainer, Recorder; new or going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from positron_mini import device as devices
from positron_mini.config import (
    DEFAULT_TEXT,
    ModelConfig,
    SampleConfig,
    TrainConfig,
    changed_fields,
    default_eval_every,
    is_milestone,
    model_config,
    parse_duration,
    parse_milestones,
    preset,
)
from positron_mini.distributed import ALONE, Processes
from positron_mini.errors import DataError, Say
from positron_mini.evaluate.bits import Score, score_documents
from positron_mini.evaluate.skills import RunTests, run_tests, skill_test
from positron_mini.export.card import step_card
from positron_mini.generate import milestone_samples
from positron_mini.model import GPT
from positron_mini.optim import MOMENTUM_WARMUP, build_optimizer
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.opening import STORY, openings
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import StepReport
from positron_mini.store.run_record import RunRecord
from positron_mini.text import tokens
from positron_mini.text.prepare import Prepared, prepare_corpus
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.train import budget
from positron_mini.train.first_lines import describe
from positron_mini.train.pace import Pacer
from positron_mini.train.plan import Request
from positron_mini.train.recorder import Follower, Recorder, Recording
from positron_mini.train.session import Session, elapsed_before, plan_run, restore, run_record
from positron_mini.train.settings import (
    batch_checks,
    budget_checks,
    default_out_dir,
    early_checks,
    for_processes,
    forget_budget,
    identity,
    merge_with_run,
    resolve,
    rows_for_all,
    same_run,
    wanted_vocab,
)
from positron_mini.train.track import NoTracker, Tracker, open_tracker
from positron_mini.trainer import Batch, LoopConfig, StopFlag, Trainer

PROMPTS = ("Once upon a time, there was a little girl who", "One day, a boy named Tim", "The dog was sad because")
SAMPLING = SampleConfig(max_tokens=80, temperature=0.7, seed=42)


class TokenBatches:
    """Windows of a token file as rows; the targets are the same windows, one token later.

    In the first `short_steps` steps each window is read as two rows of half its length: the same tokens, but attention reaches less far,
    which learns faster at first. Which tokens a step reads does not depend on it. Given where the `documents` begin, rows begin with
    documents instead (`tokens.document_rows`), the short ones too.
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
        """The rows of the update after `step` finished ones, (R, T). Errors: what `check` says of the file of `ids`."""
        self.check()
        width = self.context_len // 2 if step < self.short_steps else self.context_len
        if self._starts:
            count, starts = self.rows * self.context_len // width, self._starts[width]
            rows = tokens.rows_at(self.ids, starts[tokens.step_windows(self.seed, step, count, len(starts))], width)
        else:
            rows = tokens.gather(self.ids, tokens.step_windows(self.seed, step, self.rows, self.windows), self.context_len)
        whole = torch.from_numpy(rows)  # (R, T + 1)
        return Batch(whole[:, :-1].reshape(-1, width), whole[:, 1:].reshape(-1, width))


def open_session(
    config: TrainConfig,
    *,
    given: frozenset[str] | None = None,
    say: Say = lambda _: None,
    stop: StopFlag | None = None,
    processes: Processes = ALONE,
) -> Session:
    """The run that `config` asks for, new or continued, after every check has passed; the run folder is not touched yet.

    `given` names the settings that were spelled out: they must agree with a recorded run, where the others follow it. Of several
    `processes` the first must be through before the others begin (`processes.in_turn`). Errors: PositronError of every kind.
    """
    began = time.monotonic()
    given = changed_fields(config) if given is None else given
    budget_checks(config, processes.size)
    precision_why = "as asked" if config.precision != "auto" else "by measurement"  # a budget may time both and name the faster
    config = budget.decide(config, given, Path(config.dataset_path or DEFAULT_TEXT), say)
    run = RunFolder(Path(config.out_dir or default_out_dir(config)))
    config, recorded = merge_with_run(config, given, run, "pretrain")
    config = forget_budget(config, given, recorded, say)
    budget_checks(config, processes.size)
    config = for_processes(config, given, recorded, processes)
    batch_checks(config)
    early_checks(config, run, recorded)
    machine = devices.this_machine()
    if recorded is None:
        devices.choose(machine, config.device, config.precision)
    measured_s = time.monotonic() - began  # choosing is part of a budget, preparing a text is not
    prepared = _prepare(config, lambda content: same_run(run, recorded, {"text": content}) if recorded else None, say)
    began = time.monotonic() - measured_s
    shape = model_config(config, prepared.tokenizer.vocab_size)
    config = replace(config, out_dir=str(run.path), max_steps=_worth_reading(config, shape, prepared))
    config, rows, choice = resolve(config, shape, machine, recorded, say, precision_why=precision_why)
    if recorded is not None:
        same_run(run, recorded, identity(config, shape, prepared))
    rows_for_all(rows, processes)
    if config.eval_every is None:
        config = replace(config, eval_every=default_eval_every(prepared.train.count, rows * shape.context_len))
    return _build(config, run, recorded, prepared, shape, rows, choice, say, stop or StopFlag(), began, processes)


def _worth_reading(config: TrainConfig, shape: ModelConfig, prepared: Prepared) -> int | None:
    """The steps to train: of those that a budget has time for, not more than read the text as often as the model gains from it."""
    if config.budget is None or config.max_steps is None or config.batch_tokens is None:
        return config.max_steps
    return min(config.max_steps, budget.most_steps(shape, prepared, config.batch_tokens) or config.max_steps)


def _prepare(config: TrainConfig, check_content: Callable[[str], None], say: Say) -> Prepared:
    source = Path(config.dataset_path or DEFAULT_TEXT)
    if config.dataset_path is None and not source.exists():
        raise DataError(
            f"{source}: no such file, and no --dataset_path was given",
            "positron prepare --dataset tinystories   or   --dataset_path YOUR.txt",
        )
    context = config.context_len or preset(config.config).context_len
    path = Path(config.tokenizer_path) if config.tokenizer_path else None
    vocab = config.vocab_size if path is not None and path.exists() else wanted_vocab(config)
    return prepare_corpus(source, tokenizer_path=path, vocab_size=vocab, min_train_tokens=context + 1, check_content=check_content, say=say)


def _build(
    config: TrainConfig,
    run: RunFolder,
    recorded: RunRecord | None,
    prepared: Prepared,
    shape: ModelConfig,
    rows: int,
    choice: devices.Choice,
    say: Say,
    stop: StopFlag,
    began: float,
    processes: Processes,
) -> Session:
    """Plan, model, trainer and recorder of a resolved configuration."""
    step_tokens = rows * shape.context_len
    most_steps = budget.most_steps(shape, prepared, step_tokens)
    horizon = _steps_asked(config, run, recorded, most_steps, say)
    request = Request(
        max_steps=horizon,
        until_step=config.until_step,
        more_steps=config.more_steps,
        resume_from_step=config.resume_from_step,
        finish=config.finish,
        cooldown_steps=config.cooldown_steps,
    )
    plan, newest = plan_run(run, recorded, request, config.warmup_steps, say)
    assert config.lr is not None and config.micro_batch is not None and config.batch_tokens is not None
    model = GPT(shape).init_weights(config.seed, config.embedding_std, config.copy_init).to(devices.torch_device(config.device))
    loop = LoopConfig(
        lr=config.lr,
        schedule=plan.schedule,
        micro_batch=config.micro_batch,
        grad_clip=config.grad_clip,
        dropout=config.dropout,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        compile=config.compile == "on",
        native=config.kernels == "native",
        grad_limit=config.grad_limit,
        max_skips=config.max_skips if config.on_nan == "skip" else 0,
    )
    train = prepared.train
    documents = train.documents()[:, 0] if config.align_rows else None
    source = TokenBatches(train.ids, config.seed, rows, shape.context_len, config.short_steps or 0, train.check_unchanged, documents)
    optimizer = build_optimizer(
        model,
        config.optimizer,
        lr=config.lr,
        muon_lr=config.muon_lr,
        weight_decay=config.weight_decay,
        momentum_warmup=MOMENTUM_WARMUP,
    )
    pacer = _pacer(config, most_steps)
    begun_s = 0.0 if pacer is None else time.monotonic() - began
    trainer = Trainer(model, optimizer, source, loop, elapsed_s=elapsed_before(run, plan.start) + begun_s, processes=processes)
    restore(trainer, newest, plan)
    is_watched = processes.is_first and not plan.finished
    tracker: Tracker = open_tracker(config.track, run.path) if is_watched else NoTracker()
    planned = planned_horizon(config, recorded, plan.schedule.horizon)
    recording = _recording(config, run, prepared, shape, step_tokens, planned, processes)
    recorder = (Recorder if processes.is_first else Follower)(run, trainer, recording, tracker)
    record = run_record("pretrain", asdict(config), recorded, identity(config, shape, prepared), plan, choice)
    record = replace(record, bos_share=round(prepared.report["train_stories"] / train.count, 6))
    lines = describe(config, shape, prepared, plan, choice, rows, trainer, run) if is_watched else []
    if pacer is not None:
        expected, line = budget.expectation(recorded, shape, plan.schedule.horizon, step_tokens, prepared)
        record = replace(record, expected_bpb=expected)
        lines.append(line)
    return Session(
        config, run, plan, lines, trainer, recorder, record, stop, prepared.tokenizer, run.steps(), pacer=pacer, processes=processes
    )


def _pacer(config: TrainConfig, most_steps: int | None) -> Pacer | None:
    """What keeps a run with a budget to its time; None for others."""
    if config.budget is None:
        return None
    seconds = parse_duration(config.budget, "budget")
    compiled = config.compile == "on"
    return Pacer(seconds, config.short_steps or 0, cooldown_steps=config.cooldown_steps, compiled=compiled, most_steps=most_steps)


def _steps_asked(config: TrainConfig, run: RunFolder, recorded: RunRecord | None, most_steps: int | None, say: Say) -> int | None:
    """The horizon that the command asks for: that of --max_steps, or what a larger budget than before allows."""
    if config.max_steps is not None or config.budget is None or recorded is None:
        return config.max_steps
    return budget.longer_horizon(run, recorded, config.budget, most_steps, say)


def planned_horizon(config: TrainConfig, recorded: RunRecord | None, horizon: int | None) -> int | None:
    """The horizon that the pairs of the milestones are chosen by: a run with a budget moves its own on the way, and keeps to its first."""
    if config.budget is None or recorded is None:
        return horizon
    return recorded.schedules[0]["horizon"] if recorded.schedules else horizon


def _recording(
    config: TrainConfig,
    run: RunFolder,
    prepared: Prepared,
    shape: ModelConfig,
    step_tokens: int,
    horizon: int | None,
    processes: Processes,
) -> Recording:
    """What is written when, for a pretraining run."""
    # a forward pass costs a third of a training step, so this many tokens take at most 5 % of the time between two validations
    assert config.eval_every is not None
    documents, byte_counts = validation_subset(prepared, int(0.15 * config.eval_every * step_tokens))
    milestones = parse_milestones(config.milestones)
    skills = partial(milestone_skills, prepared.tokenizer, milestones, step_tokens, horizon)
    title, prompts = run.path.name, milestone_prompts([prepared.tokenizer.decode(document) for document in documents])

    def evaluate(model: GPT) -> Score:
        mine = slice(processes.rank, None, processes.size)
        part = score_documents(model, documents[mine], byte_counts[mine], device=config.device, precision=config.precision)
        nats, *counts = processes.sums([part.nats, part.tokens, part.bytes, part.documents])
        return Score(nats, *map(int, counts))

    def observe(model: GPT, step: int) -> None:
        texts = milestone_samples(model, prepared.tokenizer, prompts, SAMPLING)
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            run.log(
                "samples", {"step": step, "prompt": prompt, "text": text, "seed": SAMPLING.seed + i, "temperature": SAMPLING.temperature}
            )
        score_skills(model, step)

    def score_skills(model: GPT, step: int) -> None:
        began = time.monotonic()
        tests, record = skills(), run.read()
        is_end = record is not None and record.horizon == step
        test = tests.end if is_end else tests.milestone
        if test is None:
            return
        for result in test.score(model, device=config.device, precision=config.precision):
            run.log("skills", result.record(step))
        run.log("events", {"kind": "skills", "step": step, "seconds": round(time.monotonic() - began, 3), "tokens": test.tokens})

    def folder_texts(step: int, seen: int, report: StepReport | None) -> dict[str, bytes]:
        facts: dict[str, Any] = {
            "step": f"{step:,}",
            "training tokens": f"{seen:,}",
            "text": Path(config.dataset_path or DEFAULT_TEXT).name,
        }
        if report is not None and report.val_bpb is not None:
            facts["validation"] = f"{report.val_loss:.3f} nats per token, {report.val_bpb:.3f} bits per byte"
        card = step_card(title, shape, facts, is_chat=False)
        return ckpt.model_files(shape, prepared.tokenizer, chat_template=None, card=card)

    return Recording(config.save_every, config.eval_every, milestones, evaluate, observe, folder_texts, points_best=False)


@lru_cache(maxsize=1)  # made at the first milestone, kept for the others
def milestone_skills(tokenizer: Tokenizer, milestones: frozenset[int] | None, step_tokens: int, horizon: int | None) -> RunTests:
    """The pairs that a run is scored on at every milestone, and at its end: as many as fit the time.

    The time is counted in tokens, not by the clock, so that going on means scoring the same pairs. A run without a horizon is planned to
    its last named milestone, or to step 1,000.
    """
    last = max({1_000} | (milestones or set())) if horizon is None else horizon
    scorings = sum(is_milestone(step, milestones) or step == horizon for step in range(last + 1))
    return run_tests(skill_test(tokenizer), last * step_tokens, scorings)


def milestone_prompts(documents: Sequence[str]) -> tuple[str, ...]:
    """What the samples of a run begin with: the prompts of stories where one of the documents is one, else the documents' first words."""
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
