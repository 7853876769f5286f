"""A time budget becomes a plan: the preset, vocabulary, batch and steps that end with the best model after that many minutes.

What a model reaches is predicted by a law that was fitted to runs of our own (docs/results/scaling-law.md): bits per byte of held-out
stories as a function of the weights of its blocks, N, and of the bytes of text it has read, D:

    bits per byte = floor + (size / N)^alpha + (text / D)^beta

Text that is read again counts less with each time. Sources: Hoffmann et al. 2022 (arXiv 2203.15556), Muennighoff et al. 2023 (2305.16264).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
from positron_mini.train.first_lines import measure_speed
from positron_mini.train.settings import choose_kernels

# pieces of a new tokenizer for each preset: with minutes to spend, a large table costs more time than its longer pieces save
VOCABULARY = {"PicoGPT": 2_048, "MicroGPT": 4_096, "TinyGPT": 4_096, "SmallGPT": 8_192, "BaseGPT": 16_000}
STEP_S = 0.25  # a batch grows, in powers of two, as long as a step takes no longer
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 2_048, 32_768
TRAINING_SHARE = 0.85  # of the time that is spent on steps; the rest goes to validation, samples, skills, saving and start-up
REUSE = 15.4  # readings of a text beyond which more are worth next to nothing (Muennighoff et al. 2023)
MIN_CONTEXT_LEN = 512  # a story and a question about it, so that the model can be fine-tuned
TRIAL_ROWS = 4
FIRST_GUESS = 1_000  # steps of an open-ended run that is given a budget before it has a speed; the pacer will move it
EARLY = 0.15  # of the budget: a run that ends so long before has been ended because its text is short
# of a text that has fewer bytes than the model has weights, more readings are learned by heart: 50 kB of stories are best read 5 times by
# PicoGPT, in small steps (2.15 bits per byte; 2.39 after 10), 32,000 surnames 2.6 times
FEW_READINGS, NAME_READINGS, NAME_BYTES = 5.0, 2.5, 32
FEWEST_STEPS, LEAST_BATCH_TOKENS = 150, 512  # of a run that reads so little


@dataclass(frozen=True)
class Law:
    """Bits per byte of held-out text by model and text size; see the head of this file."""

    floor: float
    size: float
    alpha: float
    text: float
    beta: float

    def bits_per_byte(self, block_parameters: float, text_bytes: float) -> float:
        """What a model with that many weights in its blocks reaches after that many bytes of fresh text."""
        return self.floor + math.pow(self.size / block_parameters, self.alpha) + math.pow(self.text / text_bytes, self.beta)


# benchmarks/scaling_law.py fits it to the runs in docs/results/scaling-law.json
TINYSTORIES = Law(floor=0.5, size=69_550, alpha=0.8088, text=698_980, beta=0.4362)


def worth_of_text(read_bytes: float, unique_bytes: float) -> float:
    """The bytes of fresh text that are worth as much as reading `unique_bytes` until `read_bytes` are read."""
    repeats = max(0.0, read_bytes / unique_bytes - 1)
    return min(read_bytes, unique_bytes) + unique_bytes * REUSE * (1 - math.exp(-repeats / REUSE))


def fits_text(shape: ModelConfig, text_bytes: float) -> bool:
    """Whether a text is long enough for a model of this shape: one with more weights than it has bytes learns it by heart."""
    return shape.block_parameters <= text_bytes


def most_readings(shape: ModelConfig, text_bytes: float, documents: int = 0) -> float:
    """How often a model of this shape gains from reading a text; no limit is known where the text is long enough for it."""
    if fits_text(shape, text_bytes):
        return math.inf
    return NAME_READINGS if text_bytes < NAME_BYTES * documents else FEW_READINGS


def most_steps(shape: ModelConfig, prepared: Prepared, step_tokens: int) -> int | None:
    """The steps of a run that reads its text as often as it gains from it; None where there is no limit."""
    readings = readings_of(shape, prepared)
    return None if math.isinf(readings) else max(1, round(readings * prepared.train.count / step_tokens))


def readings_of(shape: ModelConfig, prepared: Prepared) -> float:
    """`most_readings` of a prepared text."""
    return most_readings(shape, prepared.report["bytes"], prepared.report["stories"])


def bytes_per_token(vocab_size: int) -> float:
    """Bytes of a story that one token stands for: 3.6 with 2,048 pieces, 3.9 with 4,096, 4.1 with 16,000 (TinyStories)."""
    return 4.15 - 0.57 * math.pow(2_048 / vocab_size, 0.9)


@dataclass(frozen=True)
class Candidate:
    """A plan for the time there is, and what it is expected to reach."""

    config: str
    shape: ModelConfig
    tok_per_s: float
    batch_tokens: int
    steps: int
    expected_bpb: float

    @property
    def tokens(self) -> int:
        """The tokens that it reads."""
        return self.steps * self.batch_tokens


def candidate(config: str, shape: ModelConfig, tok_per_s: float, seconds: float, text_bytes: float, batch: int | None) -> Candidate:
    """The plan for training `shape` for that many seconds at that speed; `batch` None: tokens per step as `batch_for` says."""
    most_tokens = most_readings(shape, text_bytes) * text_bytes / bytes_per_token(shape.vocab_size)
    batch = batch or batch_for(tok_per_s, most_tokens, max(LEAST_BATCH_TOKENS, shape.context_len))
    steps = max(1, int(min(seconds * TRAINING_SHARE * tok_per_s, most_tokens) / batch))
    read = steps * batch * bytes_per_token(shape.vocab_size)
    expected = TINYSTORIES.bits_per_byte(shape.block_parameters, worth_of_text(read, text_bytes))
    return Candidate(config, shape, tok_per_s, batch, steps, expected)


def batch_for(tok_per_s: float, most_tokens: float = math.inf, least: int = LEAST_BATCH_TOKENS) -> int:
    """Tokens a step at that speed: 2,048 on a slow machine, because steps are what it is short of, more where steps get too short.

    Fewer, down to `least`, where `most_tokens` in all would make fewer than FEWEST_STEPS steps.
    """
    size = 1 << int(math.log2(max(1.0, tok_per_s * STEP_S)))
    size = min(MAX_BATCH_TOKENS, max(MIN_BATCH_TOKENS, size))
    while size // 2 >= least and size * FEWEST_STEPS > most_tokens:
        size //= 2
    return size


def choose(
    shapes: dict[str, ModelConfig], speed: Callable[[str], float], seconds: float, text_bytes: float, batch: int | None = None
) -> Candidate:
    """The candidate that is expected to end lowest. Measured are the smallest, then whichever leads, until the leader has been.

    The speed of one that has not been measured is taken from the nearest measured one, by operations a token.
    """
    measured: dict[str, float] = {}
    name = min(shapes, key=lambda n: shapes[n].flops_per_token())
    while True:
        measured[name] = speed(name)
        best = min(
            (candidate(other, shape, _guess(other, shapes, measured), seconds, text_bytes, batch) for other, shape in shapes.items()),
            key=lambda plan: plan.expected_bpb,
        )
        if best.config in measured:
            return best
        name = best.config


def _guess(name: str, shapes: dict[str, ModelConfig], measured: dict[str, float]) -> float:
    if name in measured:
        return measured[name]
    work = shapes[name].flops_per_token()
    nearest = min(measured, key=lambda other: abs(math.log(shapes[other].flops_per_token() / work)))
    return measured[nearest] * shapes[nearest].flops_per_token() / work


# --- a run with a budget ----------------------------------------------------------------------------------------------------------------


def decide(config: TrainConfig, given: frozenset[str], text: Path, say: Say) -> TrainConfig:
    """`config` with all that its budget decides filled in. A run that is there keeps what was decided when it began.

    Errors: UsageError for a budget beside a number of steps.
    """
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
    """Whether other programs had the processor since `before`, in words."""
    return disturbance(before, usage(), torch.get_num_threads(), devices.this_machine().cores)


def existing_run(config: TrainConfig, given: frozenset[str], say: Say = lambda _: None) -> RunFolder | None:
    """The run that this command goes on with: that of --out_dir, else the newest one with a default name that began with a budget and
    agrees with the flags that were given."""
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
    """Tokens a second that training a model of this shape would make on this machine, from a moment of it."""
    choice = devices.choose(devices.this_machine(), config.device, precision)
    model = GPT(shape).init_weights(0).to(devices.torch_device(choice.device))
    native = choose_kernels(config, shape, choice.device, None) == "native"
    return measure_speed(model, choice.device, choice.precision, rows=TRIAL_ROWS, compiled=True, native=native)


def faster_precision(config: TrainConfig, shape: ModelConfig, say: Say) -> Literal["auto", "fp32", "bf16"]:
    """bf16 on a processor that has such products, if they train this shape faster; what `config` says where the doctor knows more."""
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
    """The shapes to choose from: every preset with its vocabulary here that the text is long enough for, or the one that was named.

    A named tokenizer file decides too.
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


def expectation(
    recorded: RunRecord | None, shape: ModelConfig, horizon: int | None, step_tokens: int, prepared: Prepared
) -> tuple[float, str]:
    """Bits per byte that a run is expected to end with, as it was said when the run began, and the line that says so."""
    size = bytes_per_token(shape.vocab_size)
    read = min((horizon or 0) * step_tokens, readings_of(shape, prepared) * prepared.train.count)  # more would not lower it
    worth = worth_of_text(read * size, prepared.train.count * size)
    found = recorded.expected_bpb if recorded is not None else None
    bits = found if found is not None else TINYSTORIES.bits_per_byte(shape.block_parameters, max(worth, 1.0))
    return bits, f"expected   {bits:.2f} bits per byte at the end, for stories like TinyStories; other texts end elsewhere"


def longer_horizon(run: RunFolder, recorded: RunRecord, budget: str, most: int | None, say: Say) -> int | None:
    """The horizon that another budget than before asks for where the pacer cannot move the run's own: of an open-ended run, and of one
    whose rate falls already and whose budget is now larger, by the speed of its log. None to keep the horizon.

    `most`: the steps that the text is worth; `say` is told where they forbid a longer run. Errors: UsageError for a budget below the time
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
    """The step that a run reaches by `budget_s`, at the speed of its log, if it goes on from step `start` (None: from its newest)."""
    first, last = rows[len(rows) // 4], rows[-1]  # without the start-up
    steps_per_s = (last["step"] - first["step"]) / max(last["elapsed_s"] - first["elapsed_s"], 1e-9)
    begin = next((row for row in reversed(rows) if start is None or row["step"] <= start), first)
    return int(begin["step"] + (budget_s - begin["elapsed_s"]) * steps_per_s)


def reached(expected_bpb: float, bpb: float, budget_s: float, elapsed_s: float) -> str:
    """What came of the plan, in a line."""
    off = elapsed_s / budget_s - 1
    early = "; reading so short a text more often would only hurt, more text helps more than more minutes" if off < -EARLY else ""
    return (
        f"budget     expected {expected_bpb:.2f}, reached {bpb:.2f} bits per byte; {elapsed_s / 60:.1f} of {budget_s / 60:g} minutes "
        f"({off:+.1%}){early}"
    )
