"""Is my curve normal? Rules that a training log should keep, and reference curves for some corpora. Pure functions of log rows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from positron_mini import files

# curves that ship with the package: CORPUS-PRESET.json, {"run": its origin, "rows": lines as in a run's metrics.jsonl}
REFERENCE_FOLDER = Path(__file__).parent / "reference"
FIRST_LOSS = 0.02  # a new model's loss is within this share of ln(vocabulary)
SPIKE_NATS = 0.5
MEMORISING = 0.15  # share by which validation loss exceeds training loss
ABOVE_LOWEST, NOISE_TIMES, LAST_ABOVE, FEWEST_TO_TURN = 0.02, 5.0, 3, 7  # whether held-out loss has turned, see `turned`
REFERENCE = 0.05  # another seed changes a curve by less than this share of its loss
FAR_OFF = 0.2  # share above the reference at equal tokens that a different cool-down does not explain
CAUSES = "a learning rate that does not fit the batch, a text of another kind, a tokenizer of another text, damaged text"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Check:
    """Result of one rule: name, whether the curve keeps it (None: too early to tell), figures."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Validation:
    """Held-out loss at a step, in nats per token and bits per byte, and the mean training loss since the validation before it."""

    step: int
    loss: float
    bpb: float
    training: float


def validations(rows: Rows) -> list[Validation]:
    """Validations in a log."""
    found, since = [], []
    for row in rows:
        since.append(float(row["loss"]))
        if "val_loss" in row and math.isfinite(row["val_loss"]):
            found.append(Validation(row["step"], float(row["val_loss"]), float(row.get("val_bpb", 0.0)), fmean(since)))
            since = []
    return found


@dataclass(frozen=True)
class Turn:
    """A turn of the held-out loss: its lowest validation and the newest."""

    best: Validation
    newest: Validation


def turned(found: Sequence[Validation]) -> Turn | None:
    """The turn of the held-out loss since its lowest validation; None while it has not turned.

    It has turned when the last three validations all lie above the lowest by more than 2 % and by more than five times the noise of the
    validations, while the training loss fell further: from there on the model memorises its text. Where both rise, as after a spike,
    something else is wrong. The lowest is the lowest median of three, so that one lucky validation does not count. The noise is the median
    deviation of a validation from the line between its neighbours, which a bend in the curve hardly changes.
    """
    if len(found) < FEWEST_TO_TURN:
        return None
    losses = [one.loss for one in found]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    noise = 1.4826 * median(bends) / math.sqrt(6)  # standard deviation from the median of such second differences
    lowest = min(median(losses[i : i + 3]) for i in range(len(losses) - 2))
    if min(losses[-LAST_ABOVE:]) <= lowest + max(ABOVE_LOWEST * lowest, NOISE_TIMES * noise):
        return None
    at = losses.index(min(losses))
    then, now = (fmean(one.training for one in pair) for pair in (found[at : at + 2], found[-2:]))
    return Turn(found[at], found[-1]) if now < then else None


def curve_checks(
    rows: Rows, vocab_size: int, *, is_pretraining: bool, reference: Rows | None = None, bos_share: float = 0.0
) -> list[Check]:
    """Check the rows of a metrics.jsonl against the rules, in the order in which a person would look.

    `bos_share`: share of the training targets that are the bos after an eos; they cost nothing, and validation does not count them.
    """
    checks = [_starts_at_chance(rows, vocab_size)] if is_pretraining else []
    checks += [_falls(rows), _no_spikes(rows), _does_not_memorise(rows, bos_share), _keeps_its_pace(rows)]
    return checks + ([_follows(rows, reference)] if reference is not None else [])


def reference_names() -> list[str]:
    """Names of the curves that ship with the package."""
    return sorted(path.stem for path in REFERENCE_FOLDER.glob("*.json"))


def read_reference(name: str) -> Rows:
    """Rows {"tokens", "loss", "val_bpb"?} of a shipped curve; `name` is one of `reference_names()`."""
    rows: Rows = files.read_json(REFERENCE_FOLDER / f"{name}.json")["rows"]
    return rows


def reference_name(config: str, dataset_path: str | None) -> str | None:
    """Shipped curve of the same preset on the same corpus, recognised by the text's name; None if there is none."""
    stem = Path(dataset_path or "tinystories").stem.lower()
    for name in reference_names():
        corpus, _, shape = name.partition("-")
        if shape.lower() == config.lower() and stem.startswith(corpus):
            return name
    return None


def reference_for(config: str, dataset_path: str | None) -> Rows | None:
    """Rows of the shipped curve that fits a run; None if there is none."""
    name = reference_name(config, dataset_path)
    return None if name is None else read_reference(name)


def standing(reference: Rows, tokens: int, val_bpb: float) -> tuple[float, str] | None:
    """Bits per byte of the reference after that many tokens, and a warning if this run is far above it, else an empty text.

    None beyond the ends of the reference.
    """
    scored = [row for row in reference if "val_bpb" in row]
    if not scored or not int(scored[0]["tokens"]) <= tokens <= int(scored[-1]["tokens"]):
        return None
    at = bisect_left([int(row["tokens"]) for row in scored], tokens)
    low, high = scored[max(at - 1, 0)], scored[at]
    share = (tokens - low["tokens"]) / max(1, high["tokens"] - low["tokens"])
    expected = float(low["val_bpb"] + share * (high["val_bpb"] - low["val_bpb"]))
    if val_bpb <= (1 + FAR_OFF) * expected:
        return expected, ""
    return expected, (
        f"warning: {val_bpb:.3f} bits per byte after {tokens:,} tokens; a run of ours had {expected:.3f} there. Likely causes: {CAUSES}"
    )


def _starts_at_chance(rows: Rows, vocab_size: int) -> Check:
    chance = math.log(vocab_size)
    if not rows or rows[0]["step"] != 1:
        return Check("start", None, f"The first step is missing; its loss should be ln({vocab_size:,}) = {chance:.2f}.")
    loss = float(rows[0]["loss"])
    detail = f"It starts at {loss:.2f}; a model that knows nothing has ln({vocab_size:,}) = {chance:.2f}."
    return Check("start", abs(loss - chance) <= FIRST_LOSS * chance, detail)


def _falls(rows: Rows) -> Check:
    if len(rows) < 20:
        return Check("falls", None, "It should fall; 20 reports are needed to tell.")
    part = max(5, len(rows) // 10)
    early, late = (fmean(float(row["loss"]) for row in some) for some in (rows[:part], rows[-part:]))
    return Check("falls", late < early, f"The loss went from {early:.2f} (first {part} reports) to {late:.2f} (last {part}).")


def _no_spikes(rows: Rows) -> Check:
    losses = [float(row["loss"]) for row in rows]
    if len(losses) <= 10:
        return Check("spikes", None, "No spikes should show; 10 reports are needed to tell.")
    jump, at = max((losses[i] - median(losses[i - 10 : i]), i) for i in range(10, len(losses)))
    detail = f"The largest jump above the ten reports before is {max(jump, 0):.2f} nats, at step {rows[at]['step']:,}."
    return Check("spikes", jump < SPIKE_NATS, detail + ("" if jump < SPIKE_NATS else " A smaller learning rate calms it."))


def _does_not_memorise(rows: Rows, bos_share: float) -> Check:
    scored = [i for i, row in enumerate(rows) if "val_loss" in row]
    if not scored:
        return Check("memorising", None, "No validation yet; it shows whether the model learns or memorises.")
    at = scored[-1]
    training = fmean(float(row["loss"]) for row in rows[max(0, at - 9) : at + 1]) / (1 - bos_share)
    validation, turn = float(rows[at]["val_loss"]), turned(validations(rows))
    share = validation / training - 1 if training > 0 else math.inf
    counted = ", without the bos between texts" if bos_share >= 0.01 else ""
    detail = f"Validation is {validation:.2f}, training {training:.2f} nats per token{counted}."
    if turn is not None:
        detail += f" Validation was lowest at step {turn.best.step:,}, with {turn.best.loss:.2f}."
    is_right = share < MEMORISING and turn is None
    return Check("memorising", is_right, detail + ("" if is_right else " The text is too small for so many steps."))


def _keeps_its_pace(rows: Rows) -> Check:
    speeds = [float(row["tok_per_s"]) for row in rows]
    if len(speeds) < 10:
        return Check("pace", None, "The pace should be even; 10 reports are needed to tell.")
    usual, now = median(speeds), median(speeds[-5:])
    detail = f"{now:,.0f} tokens per second now, {usual:,.0f} usually."
    is_even = now > 0.6 * usual
    return Check("pace", is_even, detail + ("" if is_even else " Another program may be busy, or the machine is hot."))


def _follows(rows: Rows, reference: Rows) -> Check:
    """Whether the newest losses are near the reference's after as many tokens."""
    if not rows or not reference:
        return Check("reference", None, "There is nothing to hold against each other yet.")
    newest = rows[-5:]
    tokens = round(fmean(int(row["tokens"]) for row in newest))
    if tokens < int(reference[0]["tokens"]) or tokens > int(reference[-1]["tokens"]):
        return Check("reference", None, f"The reference has no point at {tokens:,} tokens.")
    expected, loss = _loss_at(reference, tokens), fmean(float(row["loss"]) for row in newest)
    gap = loss / expected - 1
    return Check(
        "reference", gap <= REFERENCE, f"After {tokens:,} tokens the loss is {loss:.2f}; the reference had {expected:.2f} ({gap:+.0%})."
    )


def _loss_at(reference: Rows, tokens: int) -> float:
    """Loss of the reference after `tokens`, interpolated between its two nearest reports, each the mean of up to two on either side."""

    def smooth(i: int) -> float:
        reach = min(2, i, len(reference) - 1 - i)
        return fmean(float(row["loss"]) for row in reference[i - reach : i + reach + 1])

    right = min(max(1, bisect_left([int(row["tokens"]) for row in reference], tokens)), len(reference) - 1)
    if right == 0:
        return float(reference[0]["loss"])
    low, high = (int(reference[i]["tokens"]) for i in (right - 1, right))
    share = (tokens - low) / max(1, high - low)
    return smooth(right - 1) + share * (smooth(right) - smooth(right - 1))
