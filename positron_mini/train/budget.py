"""Runs with a time budget: choose preset, vocabulary, batch and steps for the time, and keep the run to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from positron_mini import device as devices
from positron_mini.config import PRESETS, ModelConfig, TrainConfig, default_lr, model_config, parse_duration, preset
from positron_mini.device.quiet import Usage, disturbance, paired, usage
from positron_mini.errors import Say, UsageError
from positron_mini.model import GPT
from positron_mini.store.curve import turned, validations
from positron_mini.store.find import readable_runs
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_record import RunRecord
from positron_mini.text.corpus.files import list_files
from positron_mini.text.prepare import Prepared, default_tokenizer_path
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.train.find_run import budget_checks
from positron_mini.train.law import TINYSTORIES, Candidate, bytes_per_token, choose, fits_text, most_steps, readings_of, worth_of_text
from positron_mini.train.pace import Pacer
from positron_mini.train.settings import choose_kernels
from positron_mini.train.speed import measure_speed

if TYPE_CHECKING:
    from positron_mini.train.pretrain import Pretraining
    from positron_mini.train.session import Session

# vocabulary of a new tokenizer by preset: in minutes of training, a large table costs more time than its longer pieces save
VOCABULARY = {"PicoGPT": 2_048, "MicroGPT": 4_096, "TinyGPT": 4_096, "SmallGPT": 8_192, "BaseGPT": 16_000}
MIN_CONTEXT_LEN = 512  # a story and a question about it, so that the model can be fine-tuned
TRIAL_ROWS = 4
FIRST_GUESS = 1_000  # steps of an open-ended run given a budget before its speed is known; the pacer will correct it
EARLY = 0.15  # share of the budget: a run that ends so much earlier was ended because its text is short


class Stopwatch:
    """Seconds since it was made, without the pauses."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Pause the stopwatch inside the block."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began


def decide(config: TrainConfig, given: frozenset[str], text: Path, processes: int, say: Say) -> TrainConfig:
    """Fill in all settings of `config` that its budget decides. An existing run keeps what was decided when it began.

    Errors: UsageError for a budget beside a number of steps, or for several processes.
    """
    budget_checks(config, processes)
    if config.budget is None:
        return config
    if config.max_steps is not None:
        raise UsageError("--budget and --max_steps both say where training ends", "give one of them")
    run = existing_run(config, given, say)
    if run is not None:
        return replace(config, out_dir=str(run.path))
    seconds = parse_duration(config.budget, "budget")
    devices.set_threads(config.threads)
    text_bytes = sum(path.stat().st_size for path in list_files(text)) if text.exists() else 1e9
    shapes, before = dict(possible(config, given, text_bytes)), usage()
    precision = faster_precision(config, min(shapes.values(), key=ModelConfig.flops_per_token), say)
    plan = choose(shapes, lambda name: measured_speed(config, shapes[name], precision), seconds, text_bytes, config.batch_tokens)
    say(describe(config.budget, plan, text_bytes))
    if devices.choose(devices.this_machine(), config.device).device == "cpu" and (disturbed := _disturbed(before)):
        say(f"note: {disturbed}: model and batch are chosen for the speed of now; the steps will follow the clock")
    decided: dict[str, Any] = {
        "config": plan.config,
        "vocab_size": plan.shape.vocab_size,
        "context_len": plan.shape.context_len,
        "batch_tokens": plan.batch_tokens,
        "max_steps": plan.steps,
        "lr": default_lr(plan.batch_tokens),
    }
    return replace(config, precision=precision, **{name: value for name, value in decided.items() if name not in given})


def _disturbed(before: Usage) -> str:
    """Whether other programs used the processor since `before`, in words."""
    return disturbance(before, usage(), torch.get_num_threads(), devices.this_machine().cores)


def existing_run(config: TrainConfig, given: frozenset[str], say: Say = lambda _: None) -> RunFolder | None:
    """The run that this command continues: that of --out_dir, else the newest one with a default name that began with a budget and agrees
    with the given flags.
    """
    if config.out_dir is not None:
        run = RunFolder(Path(config.out_dir))
        return run if run.read() is not None else None
    for run, recorded in readable_runs(say=say):
        settings = recorded.config
        is_alike = all(settings.get(name) == getattr(config, name) for name in given & {"config", "dataset_path", "vocab_size", "seed"})
        if run.path.name.endswith("-v1-base") and settings.get("budget") is not None and is_alike:
            return run
    return None


def measured_speed(config: TrainConfig, shape: ModelConfig, precision: str = "auto") -> float:
    """Tokens per second of training this shape here, measured in a short trial."""
    choice = devices.choose(devices.this_machine(), config.device, precision)
    model = GPT(shape).init_weights(0).to(devices.torch_device(choice.device))
    native = choose_kernels(config, shape, choice.device, None) == "native"
    return measure_speed(model, choice.device, choice.precision, rows=TRIAL_ROWS, compiled=True, native=native)


def faster_precision(config: TrainConfig, shape: ModelConfig, say: Say) -> Literal["auto", "fp32", "bf16"]:
    """bf16 on a processor with bf16 matmuls, if it trains this shape faster; the precision of `config` where the doctor has decided."""
    machine = devices.this_machine()
    is_open = devices.choose(machine, config.device).device == "cpu" and "cpu" in machine.bf16 and machine.verdict is None
    if config.precision != "auto" or not is_open:
        return config.precision
    fp32, bf16 = (partial(measured_speed, config, shape, precision) for precision in ("fp32", "bf16"))
    found = paired(fp32, bf16, devices.BF16_GAIN)
    doubt = "" if found.is_clear else "; pairs of measurements do not agree, as on a busy machine: --precision decides it for good"
    say(f"precision  bf16 products train {found.median:.2f} times as fast as fp32 here{doubt}")
    return "bf16" if found.median > devices.BF16_GAIN else "fp32"


def possible(config: TrainConfig, given: frozenset[str], text_bytes: float) -> Iterator[tuple[str, ModelConfig]]:
    """Shapes to choose from: the named preset, or every preset whose model the text is long enough for, with its vocabulary here.

    A named tokenizer file sets the vocabulary.
    """
    names = [name for name, known in PRESETS.items() if "config" not in given or known == preset(config.config)]
    for name in names:
        path = Path(config.tokenizer_path) if config.tokenizer_path else default_tokenizer_path(VOCABULARY[name])
        vocab = config.vocab_size or VOCABULARY[name]
        if path.is_file():
            vocab = Tokenizer.load(path).vocab_size
        context_len = config.context_len or max(MIN_CONTEXT_LEN, PRESETS[name].context_len)
        shape = model_config(replace(config, config=name, context_len=context_len), vocab)
        if name == names[0] or fits_text(shape, text_bytes):
            yield name, shape


def describe(budget: str, plan: Candidate, text_bytes: float) -> str:
    """The plan in words."""
    readings = plan.tokens * bytes_per_token(plan.shape.vocab_size) / text_bytes
    is_short = not fits_text(plan.shape, text_bytes)
    return (
        f"budget     {budget}: {plan.config} with {plan.shape.vocab_size:,} pieces, about {plan.steps:,} steps of {plan.batch_tokens:,} "
        f"tokens; the text is read {readings:.1f} times"
        + ("; so short a text is learned by heart when it is read more often, so the run may end early" if is_short else "")
    )


def worth_reading(config: TrainConfig, shape: ModelConfig, prepared: Prepared) -> int | None:
    """Steps that are worth training: a budget may have time for more, but the model gains from reading its text only so often."""
    if config.budget is None or config.max_steps is None or config.batch_tokens is None:
        return config.max_steps
    return min(config.max_steps, most_steps(shape, prepared, config.batch_tokens) or config.max_steps)


def first_horizon(config: TrainConfig, recorded: RunRecord | None, horizon: int | None) -> int | None:
    """The horizon that decides the skill tests of milestones: the first one, as a budget moves the run's horizon later."""
    if config.budget is None or recorded is None:
        return horizon
    return recorded.schedules[0]["horizon"] if recorded.schedules else horizon


def keep_to_time(session: Session, task: Pretraining, recorded: RunRecord | None, most: int | None, spent_s: float) -> None:
    """Make `session` end on time, `spent_s` seconds of which are spent, and say what loss is expected.

    `most`: number of steps that the text is worth.
    """
    config, settings = task.config, task.settings
    assert config.budget is not None
    session.trainer.clock.elapsed_s += spent_s
    session.pacer = Pacer(
        parse_duration(config.budget, "budget"),
        settings.short_steps,
        cooldown_steps=config.cooldown_steps,
        compiled=settings.compile,
        most_steps=most,
    )
    expected, line = expectation(recorded, settings.shape, session.plan.schedule.horizon, settings.step_tokens, task.prepared)
    session.record = replace(session.record, expected_bpb=expected)
    session.lines.append(line)


def expectation(
    recorded: RunRecord | None, shape: ModelConfig, horizon: int | None, step_tokens: int, prepared: Prepared
) -> tuple[float, str]:
    """Bits per byte expected at the end, as said when the run began, and the line that says so."""
    size = bytes_per_token(shape.vocab_size)
    read = min((horizon or 0) * step_tokens, readings_of(shape, prepared) * prepared.train.count)  # more reading would not lower it
    worth = worth_of_text(read * size, prepared.train.count * size)
    found = recorded.expected_bpb if recorded is not None else None
    bits = found if found is not None else TINYSTORIES.bits_per_byte(shape.block_parameters, max(worth, 1.0))
    return bits, f"expected   {bits:.2f} bits per byte at the end, for stories like TinyStories; other texts end elsewhere"


def horizon_asked(config: TrainConfig, run: RunFolder, recorded: RunRecord | None, most: int | None, say: Say) -> int | None:
    """The horizon that the command asks for: --max_steps, or what a larger budget than before allows."""
    if config.max_steps is not None or config.budget is None or recorded is None:
        return config.max_steps
    return longer_horizon(run, recorded, config.budget, most, say)


def longer_horizon(run: RunFolder, recorded: RunRecord, budget: str, most: int | None, say: Say) -> int | None:
    """The horizon for a changed budget where the pacer cannot move the run's own: in an open-ended run, and in one that is cooling down and
    got a larger budget, by the speed in its log. None to keep the horizon.

    `most`: number of steps that the text is worth; `say` is told if it forbids a longer run. Errors: UsageError for a budget below the time
    that an unfinished run has trained already.
    """
    rows, schedule, before = run.metrics(), recorded.schedule_at(), recorded.config.get("budget")
    if before == budget:
        return None
    if len(rows) < 2:
        return FIRST_GUESS if schedule.horizon is None else None
    last, start, horizon = rows[-1], schedule.cooldown_start, schedule.horizon
    budget_s, is_done = parse_duration(budget, "budget"), horizon is not None and last["step"] >= horizon
    if last["elapsed_s"] >= budget_s and not is_done:
        raise UsageError(
            f"--budget {budget}: this run has trained for {last['elapsed_s'] / 60:.1f} minutes already",
            "give it more time, or cool it down now with --finish in place of --budget",
        )
    is_more = budget_s > (last["elapsed_s"] if before is None else parse_duration(before, "budget"))
    is_falling = start is not None and last["step"] > start and (before is not None or is_done)
    if not (horizon is None or (is_more and is_falling)):
        return None
    least = last["step"] + 1 if horizon is None else horizon + 1
    if turned(validations(rows)) is not None or (most is not None and least > most):
        say(f"--budget {budget}: more readings of this text are learned by heart; more text helps, more minutes do not")
        return horizon or least
    wanted = _steps_in(rows, budget_s, start)
    return max(least, wanted if most is None else min(wanted, most))


def _steps_in(rows: list[dict[str, Any]], budget_s: float, start: int | None) -> int:
    """The step reached by `budget_s` at the logged speed, continuing from step `start` (None: the newest)."""
    first, last = rows[len(rows) // 4], rows[-1]  # without the start-up
    steps_per_s = (last["step"] - first["step"]) / max(last["elapsed_s"] - first["elapsed_s"], 1e-9)
    begin = next((row for row in reversed(rows) if start is None or row["step"] <= start), first)
    return int(begin["step"] + (budget_s - begin["elapsed_s"]) * steps_per_s)


def reached(expected_bpb: float, bpb: float, budget_s: float, elapsed_s: float) -> str:
    """One line comparing what was expected with what was reached."""
    off = elapsed_s / budget_s - 1
    early = "; reading so short a text more often would only hurt, more text helps more than more minutes" if off < -EARLY else ""
    return (
        f"budget     expected {expected_bpb:.2f}, reached {bpb:.2f} bits per byte; {elapsed_s / 60:.1f} of {budget_s / 60:g} minutes "
        f"({off:+.1%}){early}"
    )
