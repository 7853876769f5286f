"""Is my curve normal? Rules a training log is held against, and reference curves where there are some. Pure functions of log rows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from positron_mini import files

# curves that ship with the package: NAME.json holds two columns, "tokens" and "loss", or a list of such rows under "rows"
REFERENCE_FOLDER = Path(__file__).parent.parent / "reference"
FIRST_LOSS = 0.02  # a new model's loss lies within this share of ln(vocabulary)
SPIKE_NATS = 0.5
MEMORISING = 0.15  # validation above training, as a share of the latter
REFERENCE = 0.05  # another seed changes a curve less than this share of its loss

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Check:
    """One rule: its name, whether the curve keeps it (None: cannot be told yet) and the figures."""

    name: str
    ok: bool | None
    detail: str


def curve_checks(rows: Rows, vocab_size: int, *, is_pretraining: bool, reference: Rows | None = None) -> list[Check]:
    """The rules for the rows of a metrics.jsonl, in the order in which a person would look."""
    checks = [_starts_at_chance(rows, vocab_size)] if is_pretraining else []
    checks += [_falls(rows), _no_spikes(rows), _does_not_memorise(rows), _keeps_its_pace(rows)]
    return checks + ([_follows(rows, reference)] if reference is not None else [])


def reference_names() -> list[str]:
    """The names of the curves that ship with the package."""
    return sorted(path.stem for path in REFERENCE_FOLDER.glob("*.json") if _curve_in(path))


def read_reference(name: str) -> Rows:
    """The rows {"tokens", "loss"} of a shipped curve, by its tokens; `name` is one of `reference_names()`."""
    return _curve_in(REFERENCE_FOLDER / f"{name}.json")


def _curve_in(path: Path) -> Rows:
    """The curve in a file, nothing where it holds none."""
    data = files.read_json(path)
    if isinstance(data.get("tokens"), list) and isinstance(data.get("loss"), list):
        rows = [{"tokens": tokens, "loss": loss} for tokens, loss in zip(data["tokens"], data["loss"], strict=True)]
    else:
        rows = [row for row in data.get("rows", []) if "tokens" in row and "loss" in row]
    return sorted(rows, key=lambda row: row["tokens"])


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
    jumps = [(loss - median(losses[max(0, i - 10) : i]), i) for i, loss in enumerate(losses) if i >= 10]
    if not jumps:
        return Check("spikes", None, "No spikes should show; 10 reports are needed to tell.")
    jump, at = max(jumps)
    detail = f"The largest jump above the ten reports before is {max(jump, 0):.2f} nats, at step {rows[at]['step']:,}."
    return Check("spikes", jump < SPIKE_NATS, detail + ("" if jump < SPIKE_NATS else " A smaller learning rate calms it."))


def _does_not_memorise(rows: Rows) -> Check:
    scored = [i for i, row in enumerate(rows) if "val_loss" in row]
    if not scored:
        return Check("memorising", None, "No validation yet; it shows whether the model learns or memorises.")
    at = scored[-1]
    training = fmean(float(row["loss"]) for row in rows[max(0, at - 9) : at + 1])
    validation = float(rows[at]["val_loss"])
    share = validation / training - 1 if training > 0 else math.inf
    detail = f"Validation is {validation:.2f}, training {training:.2f} nats per token."
    return Check("memorising", share < MEMORISING, detail + ("" if share < MEMORISING else " The text is too small for so many steps."))


def _keeps_its_pace(rows: Rows) -> Check:
    speeds = [float(row["tok_per_s"]) for row in rows]
    if len(speeds) < 10:
        return Check("pace", None, "The pace should be even; 10 reports are needed to tell.")
    usual, now = median(speeds), median(speeds[-5:])
    detail = f"{now:,.0f} tokens per second now, {usual:,.0f} usually."
    is_even = now > 0.6 * usual
    return Check("pace", is_even, detail + ("" if is_even else " Another program may be busy, or the machine is hot."))


def _follows(rows: Rows, reference: Rows) -> Check:
    """Whether the newest losses lie where the reference had them after as many tokens."""
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
    """The reference's loss after `tokens`, on the line between its two nearest reports, each the mean of up to two on either side."""

    def smooth(i: int) -> float:
        reach = min(2, i, len(reference) - 1 - i)
        return fmean(float(row["loss"]) for row in reference[i - reach : i + reach + 1])

    right = min(max(1, bisect_left([int(row["tokens"]) for row in reference], tokens)), len(reference) - 1)
    if right == 0:
        return float(reference[0]["loss"])
    low, high = (int(reference[i]["tokens"]) for i in (right - 1, right))
    share = (tokens - low) / max(1, high - low)
    return smooth(right - 1) + share * (smooth(right) - smooth(right - 1))
