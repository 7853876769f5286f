"""The text of a run: its preparation report, and the losses of models so simple that they need no training.

Reference losses, each over the tokens that the run's own validation scores (every token after bos, eos included):
- uniform: every piece equally likely, ln(vocabulary).
- unigram: the frequency of each piece in the training tokens, with one added to each count so that none is impossible.
- bigram: the frequency of each piece after the one before it, by interpolated absolute discounting with 0.75 (Ney, Essen and Kneser 1994),
  which falls back on the unigram. Counted on the first 20 million training tokens.
- entropy: of the choices that made a story-world text; no model of that text can be below it.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from positron_mini import files
from positron_mini.errors import PositronError
from positron_mini.store.run_history import RunHistory
from positron_mini.text.corpus.note import generator_entropy, note_of
from positron_mini.text.prepare import Prepared
from positron_mini.text.tokenizer import BOS, Tokenizer
from positron_mini.text.tokens import TokenFile
from positron_mini.train.pretrain import validation_subset

FORMAT = 1  # raise it when a definition changes
MEMORY = "report/corpus.json"
COUNTED_TOKENS = 20_000_000
DISCOUNT = 0.75
VALIDATION_SHARE = 0.15  # of the tokens between two validations, as in train/pretrain; a test compares the two

Ids = NDArray[np.int64]
Nats = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """A horizontal line in the curve: nats per token and bits per byte of a simple model."""

    name: str
    loss: float
    bits_per_byte: float


@dataclass(frozen=True)
class Corpus:
    """The facts about a run's text. `report`: from its preparation; `note`: the source that `positron prepare` recorded."""

    references: tuple[Reference, ...]
    report: dict[str, Any]
    note: dict[str, Any]

    def reference(self, name: str) -> Reference | None:
        """The reference of that name, or None."""
        return next((line for line in self.references if line.name == name), None)


def describe_corpus(record: RunHistory, cache_dir: Path = Path("data/cache")) -> Corpus:
    """The corpus of a run: as stored in its report folder, else from the prepared tokens, else from the run's own record."""
    if record.kind != "pretrain" or record.shape is None:
        return Corpus(_uniform(record), {}, {})
    remembered = _recall(record)
    if remembered is not None:
        return remembered
    prepared = open_prepared(record, cache_dir)
    note = note_of(Path(str(record.config.get("dataset_path") or "data/tinystories.txt")))
    counted = () if prepared is None else _counted(record, prepared)
    report = {} if prepared is None else {name: value for name, value in prepared.report.items() if name != "samples"}
    return Corpus((*_uniform(record), *counted, *_entropy(record)), report, note)


def remember(record: RunHistory, corpus: Corpus) -> None:
    """Store the counts beside the report, so that they outlive the cache and the text."""
    if record.kind == "pretrain" and corpus.report:
        lines = [asdict(line) for line in corpus.references]
        value = {"format": FORMAT, **_fingerprints(record), "references": lines, "report": corpus.report, "note": corpus.note}
        files.write_json(record.path / MEMORY, value)


def _recall(record: RunHistory) -> Corpus | None:
    try:
        data = files.read_json(record.path / MEMORY)
        if data["format"] != FORMAT or any(data[name] != value for name, value in _fingerprints(record).items()):
            return None
        return Corpus(tuple(Reference(**line) for line in data["references"]), dict(data["report"]), dict(data["note"]))
    except (PositronError, KeyError, TypeError, ValueError):
        return None  # this file only saves time


def _fingerprints(record: RunHistory) -> dict[str, Any]:
    """The fingerprints that the references depend on."""
    return {"text": record.identity.get("text"), "tokenizer": record.identity.get("tokenizer"), "validated": _validation_tokens(record)}


def open_prepared(record: RunHistory, cache_dir: Path) -> Prepared | None:
    """The prepared tokens of a run's text from the cache; None if they, or the run's tokenizer, are gone."""
    text, fingerprint = str(record.identity.get("text")), str(record.identity.get("tokenizer"))
    folder = cache_dir / f"{text[:16]}-{fingerprint[:16]}"
    if not folder.is_dir():
        return None
    try:
        tokenizer = _own_tokenizer(record.path)
        if tokenizer is None:
            return None
        train, validation = (
            TokenFile.open(folder / f"{side}.tokens", expected_fingerprint=fingerprint) for side in ("train", "validation")
        )
        report = files.read_json(folder / "report.json")
        return Prepared(folder, train, validation, tokenizer, text, report) if report["content_fingerprint"] == text else None
    except (PositronError, KeyError, TypeError):
        return None


def _own_tokenizer(run: Path) -> Tokenizer | None:
    """The tokenizer of a run, from its newest step that has one."""
    for path in sorted(run.glob("step_*"), reverse=True):
        with contextlib.suppress(PositronError):
            return Tokenizer.load(path / "tokenizer.model")
    return None


# --- references -------------------------------------------------------------------------------------------------------------------------


def _validation_tokens(record: RunHistory) -> int:
    """The largest number of tokens in one validation of the run."""
    assert record.shape is not None
    context = record.shape.context_len
    rows = max(1, round(int(record.config.get("batch_tokens") or context) / context))
    return int(VALIDATION_SHARE * int(record.config.get("eval_every") or 1) * rows * context)


def _uniform(record: RunHistory) -> tuple[Reference, ...]:
    ratio = record.nats_per_bit
    if record.shape is None or ratio is None:
        return ()
    loss = math.log(record.shape.vocab_size)
    return (Reference("uniform", loss, loss / ratio),)


def _entropy(record: RunHistory) -> tuple[Reference, ...]:
    bits = generator_entropy(Path(str(record.config.get("dataset_path") or "")))
    ratio = record.nats_per_bit
    return () if bits is None or ratio is None else (Reference("entropy", bits * ratio, bits),)


def _counted(record: RunHistory, prepared: Prepared) -> tuple[Reference, ...]:
    """The unigram and the bigram on the documents that the run's validation reads."""
    documents, byte_counts = validation_subset(prepared, _validation_tokens(record))
    before = np.array([token for document in documents for token in document[:-1]], np.int64)
    after = np.array([token for document in documents for token in document[1:]], np.int64)
    if not len(after):
        return ()
    train = np.asarray(prepared.train.ids[:COUNTED_TOKENS]).astype(np.int64)
    unigram = unigram_probabilities(train, prepared.tokenizer.vocab_size)
    nats = {"unigram": -np.log(unigram[after]), "bigram": -np.log(bigram_probabilities(train, unigram, before, after))}
    size = sum(byte_counts)
    return tuple(Reference(name, float(values.mean()), float(values.sum()) / math.log(2) / max(size, 1)) for name, values in nats.items())


def unigram_probabilities(train: Ids, vocab_size: int) -> Nats:
    """Probability of each piece (V,) as the next token, whatever precedes it: from its count plus one. bos is never predicted."""
    counts = np.bincount(train, minlength=vocab_size).astype(np.float64)
    counts[BOS] = 0
    probabilities: Nats = (counts + 1) / (counts.sum() + vocab_size)
    return probabilities


def bigram_probabilities(train: Ids, unigram: Nats, before: Ids, after: Ids) -> Nats:
    """Probability of each `after` given `before`, both (N,): (count - d)/all + d x kinds/all x unigram, d = 0.75.

    `all` is how often `before` occurs with a successor, `kinds` how many different ones it has. After a piece never seen it is the unigram.
    """
    vocab = len(unigram)
    is_pair = train[1:] != BOS
    pairs, counts = np.unique(train[:-1][is_pair] * vocab + train[1:][is_pair], return_counts=True)
    totals = np.bincount(pairs // vocab, weights=counts, minlength=vocab)
    kinds = np.bincount(pairs // vocab, minlength=vocab)
    wanted = before * vocab + after
    place = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
    count = np.where(pairs[place] == wanted, counts[place], 0) if len(pairs) else np.zeros(len(wanted))
    total = np.maximum(totals[before], 1)
    found = np.maximum(count - DISCOUNT, 0) / total + DISCOUNT * kinds[before] / total * unigram[after]
    known: Nats = np.where(totals[before] > 0, found, unigram[after])
    return known
