"""The loss that a model reaches in a given time: a law fitted to our own runs, and the plan with the lowest expected loss.

Bits per byte of held-out stories are a function of N, the number of weights in a model's blocks, and D, the bytes of text it has read
(docs/results/scaling-law.md):

    bits per byte = floor + (size / N)^alpha + (text / D)^beta

Each further reading of the same text counts less. Sources: Hoffmann et al. 2022 (arXiv 2203.15556), Muennighoff et al. 2023 (2305.16264).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from positron_mini.config import ModelConfig
from positron_mini.text.prepare import Prepared

STEP_S = 0.25  # a batch is doubled as long as a step takes no longer
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 2_048, 32_768
TRAINING_SHARE = 0.85  # of the time, spent on steps; the rest goes to validation, samples, skills, saving and start-up
REUSE = 15.4  # readings of a text after which more gain next to nothing (Muennighoff et al. 2023)
# of a text with fewer bytes than the model has weights, further readings only memorise: 50 kB of stories are best read 5 times by
# PicoGPT, in small steps (2.15 bits per byte; 2.39 after 10), 32,000 surnames 2.6 times
FEW_READINGS, NAME_READINGS, NAME_BYTES = 5.0, 2.5, 32
FEWEST_STEPS, LEAST_BATCH_TOKENS = 150, 512  # of a run with so few readings


@dataclass(frozen=True)
class Law:
    """Bits per byte of held-out text as a function of model and text size; see the head of this file."""

    floor: float
    size: float
    alpha: float
    text: float
    beta: float

    def bits_per_byte(self, block_parameters: float, text_bytes: float) -> float:
        """Expected bits per byte of a model with that many weights in its blocks after that many bytes of fresh text."""
        return self.floor + math.pow(self.size / block_parameters, self.alpha) + math.pow(self.text / text_bytes, self.beta)


# fitted by benchmarks/scaling_law.py to the runs in docs/results/scaling-law.json
TINYSTORIES = Law(floor=0.5, size=69_550, alpha=0.8088, text=698_980, beta=0.4362)


def worth_of_text(read_bytes: float, unique_bytes: float) -> float:
    """Bytes of fresh text worth as much as `read_bytes` read from a text of `unique_bytes`."""
    repeats = max(0.0, read_bytes / unique_bytes - 1)
    return min(read_bytes, unique_bytes) + unique_bytes * REUSE * (1 - math.exp(-repeats / REUSE))


def fits_text(shape: ModelConfig, text_bytes: float) -> bool:
    """Whether a text is long enough for this shape: a model with more weights than its text has bytes memorises it."""
    return shape.block_parameters <= text_bytes


def most_readings(shape: ModelConfig, text_bytes: float, documents: int = 0) -> float:
    """Readings of the text from which a model of this shape still gains; infinite if the text is long enough for it."""
    if fits_text(shape, text_bytes):
        return math.inf
    return NAME_READINGS if text_bytes < NAME_BYTES * documents else FEW_READINGS


def most_steps(shape: ModelConfig, prepared: Prepared, step_tokens: int) -> int | None:
    """Number of steps that read the text as often as the model gains from it; None if there is no limit."""
    readings = readings_of(shape, prepared)
    return None if math.isinf(readings) else max(1, round(readings * prepared.train.count / step_tokens))


def readings_of(shape: ModelConfig, prepared: Prepared) -> float:
    """`most_readings` of a prepared text."""
    return most_readings(shape, prepared.report["bytes"], prepared.report["stories"])


def bytes_per_token(vocab_size: int) -> float:
    """Bytes of story per token: 3.6 with 2,048 pieces, 3.9 with 4,096, 4.1 with 16,000 (TinyStories)."""
    return 4.15 - 0.57 * math.pow(2_048 / vocab_size, 0.9)


@dataclass(frozen=True)
class Candidate:
    """A plan for the available time, and the loss expected from it."""

    config: str
    shape: ModelConfig
    tok_per_s: float
    batch_tokens: int
    steps: int
    expected_bpb: float

    @property
    def tokens(self) -> int:
        """Tokens that the plan reads."""
        return self.steps * self.batch_tokens


def candidate(config: str, shape: ModelConfig, tok_per_s: float, seconds: float, text_bytes: float, batch: int | None) -> Candidate:
    """Plan for training `shape` for that many seconds at that speed; `batch` None: tokens per step from `batch_for`."""
    most_tokens = most_readings(shape, text_bytes) * text_bytes / bytes_per_token(shape.vocab_size)
    batch = batch or batch_for(tok_per_s, most_tokens, max(LEAST_BATCH_TOKENS, shape.context_len))
    steps = max(1, int(min(seconds * TRAINING_SHARE * tok_per_s, most_tokens) / batch))
    read = steps * batch * bytes_per_token(shape.vocab_size)
    expected = TINYSTORIES.bits_per_byte(shape.block_parameters, worth_of_text(read, text_bytes))
    return Candidate(config, shape, tok_per_s, batch, steps, expected)


def batch_for(tok_per_s: float, most_tokens: float = math.inf, least: int = LEAST_BATCH_TOKENS) -> int:
    """Tokens per step at that speed: 2,048 on a slow machine, where the number of steps is scarce, more where steps get too short.

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
    """Choose the candidate with the lowest expected loss. Measure the smallest shape, then each leader, until the leader is measured.

    The speed of an unmeasured shape is estimated from the nearest measured one, by operations per token.
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
