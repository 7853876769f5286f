"""Instruction data: files of rows to conversations, checked row by row, and conversations to ids, split for validation.

Every row is used or named: an unusable one stops the reading with its line and what was expected or, with `skip_bad`, is listed.
`formats.py` says what a row may look like.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from positron_mini.chat.formats import FORMATS, WrongRow, read_row
from positron_mini.errors import DataError
from positron_mini.text.chat_format import Encoded, Message, encode_chat
from positron_mini.text.corpus.files import kind_of
from positron_mini.text.corpus.rows import read_rows, way_to_convert
from positron_mini.text.corpus.split import normalised_key
from positron_mini.text.tokenizer import Tokenizer

_LONG_QUESTION_WORDS = 40  # a question that includes a text to read: the text, not the answer, is its topic
_TELLING_ANSWER_WORDS = 4  # shorter answers ("Yes.", "A red ball.") are shared by unrelated rows
_LISTED = 10


class BadLine(NamedTuple):
    """A line that was left out, and why."""

    line: int
    what: str


@dataclass(frozen=True)
class Conversation:
    """One usable line of a file."""

    messages: tuple[Message, ...]
    line: int  # from 1


@dataclass(frozen=True)
class ReadReport:
    """Counts of what a file holds."""

    lines: int  # without blank ones
    shapes: dict[str, int]  # usable lines by the field that identifies their format
    bad: tuple[BadLine, ...]
    left_out: dict[str, int]  # non-empty fields that are not used -> number of rows with them


@dataclass(frozen=True)
class Conversations:
    """Usable lines of `path`, in its order."""

    path: Path
    conversations: tuple[Conversation, ...]
    report: ReadReport


@dataclass(frozen=True)
class InstructionReport:
    """Counts of what will be trained on. `tokens` and `trained_tokens` are those of the training rows, one epoch."""

    path: str
    lines: int
    examples: int  # usable rows, `train` + `validation`
    shapes: dict[str, int]
    duplicates: int  # rows equal to an earlier one up to case and white space; they are kept
    train: int
    validation: int
    tokens: int
    trained_tokens: int
    longest: int  # tokens of the longest row
    too_long: int
    bad: tuple[BadLine, ...]  # all lines left out, including those that were too long
    left_out: dict[str, int]  # non-empty fields that are not used -> number of rows with them

    @property
    def trained_share(self) -> float:
        """Share of the tokens that the model learns to write."""
        return self.trained_tokens / max(self.tokens, 1)


@dataclass(frozen=True)
class Instructions:
    """Encoded rows for training and validation, in the order of the file."""

    train: tuple[Encoded, ...] = field(repr=False)
    validation: tuple[Encoded, ...] = field(repr=False)
    report: InstructionReport


def read_conversations(path: Path | str, *, skip_bad: bool = False) -> Conversations:
    """Read the conversations in a file, one a row, each of one of `FORMATS`; unused fields are counted.

    Errors: DataError for an unreadable file, for one without usable rows, and for the first unusable row, unless `skip_bad` counts and
    lists those instead.
    """
    path = Path(path)
    found: list[Conversation] = []
    bad: list[BadLine] = []
    shapes: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for row in read_rows(path):
        try:
            if row.wrong:
                raise WrongRow(row.wrong)
            shape, messages, unused = read_row(row.value)
        except WrongRow as wrong:
            _refuse(path, BadLine(row.line, str(wrong)), bad, skip_bad, way_to_convert(path, wrong.program, row))
            continue
        shapes[shape] += 1
        left_out.update(unused)
        found.append(Conversation(messages, row.line))
    if not found:
        raise _nothing_usable(path, bad)
    return Conversations(path, tuple(found), ReadReport(len(found) + len(bad), dict(shapes), tuple(bad), dict(left_out)))


def _refuse(path: Path, line: BadLine, bad: list[BadLine], skip_bad: bool, convert: str = "") -> None:
    if not skip_bad:
        way_out = f"{convert}   or leave such lines out: --skip_bad" if convert else "correct the line, or leave such lines out: --skip_bad"
        raise DataError(f"{_place(path, line)}: {line.what}", way_out)
    bad.append(line)


def _place(path: Path, line: BadLine) -> str:
    return f"{path}, {'row' if kind_of(path) == 'parquet' else 'line'} {line.line}"


def _nothing_usable(path: Path, bad: Sequence[BadLine]) -> DataError:
    why = f"none of its {len(bad):,} lines can be used; line {bad[0].line}: {bad[0].what}" if bad else "it has no line with text"
    return DataError(f"{path}: {why}", f"give a file of rows such as {next(form.fields for form in FORMATS if form.answers)}")


def encode_conversations(
    tokenizer: Tokenizer, read: Conversations, context_len: int, *, skip_bad: bool = False, validation_share: float = 0.05
) -> Instructions:
    """Encode conversations as ids with masks, split them into training and validation (see `split_conversations`), and report.

    Errors: DataError for a conversation of more than `context_len` tokens, unless `skip_bad` counts and lists it, and when nothing is left.
    """
    kept: list[Conversation] = []
    rows: list[Encoded] = []
    long: list[BadLine] = []
    for conversation in read.conversations:
        encoded = encode_chat(tokenizer, conversation.messages)
        if len(encoded.ids) > context_len:
            what = f"a conversation of {len(encoded.ids):,} tokens; at most {context_len:,} fit the context"
            _refuse(read.path, BadLine(conversation.line, what), long, skip_bad)
            continue
        kept.append(conversation)
        rows.append(encoded)
    if not kept:
        raise _nothing_usable(read.path, long)
    is_validation = split_conversations(kept, validation_share)
    if validation_share > 0 and not any(is_validation):
        found = "only one conversation was found" if len(kept) == 1 else f"all {len(kept):,} conversations ask or answer the same"
        raise DataError(f"{read.path}: {found}; training needs one and validation another", "add different rows to the file")
    train = tuple(row for row, held in zip(rows, is_validation, strict=True) if not held)
    validation = tuple(row for row, held in zip(rows, is_validation, strict=True) if held)
    return Instructions(train, validation, _report(read, kept, train, validation, long))


def _report(
    read: Conversations, kept: Sequence[Conversation], train: Sequence[Encoded], validation: Sequence[Encoded], long: Sequence[BadLine]
) -> InstructionReport:
    return InstructionReport(
        path=str(read.path),
        lines=read.report.lines,
        examples=len(kept),
        shapes=read.report.shapes,
        duplicates=len(kept) - len({_whole_key(conversation) for conversation in kept}),
        train=len(train),
        validation=len(validation),
        tokens=sum(len(row.ids) for row in train),
        trained_tokens=sum(sum(row.trained) for row in train),
        longest=max(len(row.ids) for row in (*train, *validation)),
        too_long=len(long),
        bad=tuple(sorted((*read.report.bad, *long))),
        left_out=read.report.left_out,
    )


def report_lines(report: InstructionReport) -> list[str]:
    """The report as lines of text, with the first ten lines that were left out."""
    shapes = ", ".join(f"{count:,} {name}" for name, count in sorted(report.shapes.items()))
    lines = [
        f"{report.path}: {report.examples:,} conversations ({shapes}), longest {report.longest:,} tokens",
        f"training: {report.train:,} rows, {report.tokens:,} tokens, {report.trained_share:.0%} of them trained (answers only)",
        f"validation: {report.validation:,} rows that share no question and no telling answer with training",
    ]
    if report.duplicates:
        lines.append(f"duplicates: {report.duplicates:,} rows equal an earlier one; they are kept, on one side of the split")
    if report.too_long:
        lines.append(f"too long: {report.too_long:,} conversations are longer than the context")
    return lines + left_out_lines(report)


def left_out_lines(report: ReadReport | InstructionReport) -> list[str]:
    """Unused fields and the first ten lines that were left out, as lines of text."""
    lines = []
    if report.left_out:
        named = sorted(report.left_out.items(), key=lambda item: (-item[1], item[0]))
        told = [f"{name} of {count:,} rows" for name, count in named[:_LISTED]]
        lines.append("fields that are not used: " + ", ".join(told) + (f" and {len(named) - _LISTED:,} more" if named[_LISTED:] else ""))
    if report.bad:
        lines.append(f"left out: {len(report.bad):,} of {report.lines:,} lines")
        lines += [f"  line {bad.line}: {bad.what}" for bad in report.bad[:_LISTED]]
    if len(report.bad) > _LISTED:
        lines.append(f"  and {len(report.bad) - _LISTED:,} more")
    return lines


def split_conversations(conversations: Sequence[Conversation], share: float = 0.05) -> list[bool]:
    """Whether each conversation is held out for validation: about `share` of them, at least one, decided by their texts alone.

    Conversations that ask or teach the same stay on one side, or validation would measure memory. Compared are: first questions,
    up to case, punctuation and spacing; the answers of short single-turn rows, because "What is gravity?" and "Explain gravity." with one
    answer are one fact asked twice; and the longest paragraph of long questions, because two questions about one story share that story.
    Answers of fewer than four words ("Yes.") say too little to count, and an answer or paragraph in more than 20 rows and a twentieth of
    all is a phrase, not a fact. Groups are taken in the order of a hash; those that would overshoot the share are passed over.
    """
    groups = _groups(conversations)
    if share <= 0 or len(groups) < 2:
        return [False] * len(conversations)
    left = max(1, round(share * len(conversations)))
    held: set[int] = set()
    for group in groups[:-1]:  # the last one always stays for training
        if len(group) <= left:
            left -= len(group)
            held.update(group)
    held = held or set(sorted(groups, key=len)[0])
    return [index in held for index in range(len(conversations))]


def _groups(conversations: Sequence[Conversation]) -> list[list[int]]:
    """Indices of the conversations that belong together, the groups in the order of a hash of their texts."""
    questions = [_key("question", conversation.messages[_first_question(conversation)].content) for conversation in conversations]
    topics = [_topic(conversation) for conversation in conversations]
    counts = Counter(topics)
    limit = max(20, len(conversations) // 20)
    parent: dict[bytes, bytes] = {}
    for question, topic in zip(questions, topics, strict=True):
        _find(parent, question)
        if topic and counts[topic] <= limit:
            low, high = sorted((_find(parent, question), _find(parent, topic)))
            parent[high] = low
    groups: dict[bytes, list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault(_find(parent, question), []).append(index)
    return [groups[name] for name in sorted(groups)]


def _find(parent: dict[bytes, bytes], key: bytes) -> bytes:
    """Root of `key` in the union-find forest, halving paths on the way."""
    parent.setdefault(key, key)
    while parent[key] != key:
        parent[key] = parent[parent[key]]
        key = parent[key]
    return key


def _first_question(conversation: Conversation) -> int:
    """First user message after the turns that are not learned: the question of the first learned answer."""
    messages = conversation.messages
    learned = next(at for at, message in enumerate(messages) if message.role == "assistant" and message.learned)
    read = max((at for at in range(learned) if messages[at].role == "assistant"), default=-1)
    asked = [at for at in range(learned) if messages[at].role == "user"]
    return next((at for at in asked if at > read), asked[-1])


def _topic(conversation: Conversation) -> bytes:
    """Key of a row's topic besides its question; empty if there is none."""
    at = _first_question(conversation)
    question = conversation.messages[at].content
    if len(question.split()) >= _LONG_QUESTION_WORDS:
        return _key("passage", max(question.split("\n"), key=len))
    answer = conversation.messages[-1].content
    is_single = len(conversation.messages) == at + 2
    return _key("answer", answer) if is_single and len(answer.split()) >= _TELLING_ANSWER_WORDS else b""


def _key(kind: str, text: str) -> bytes:
    """A hash that is equal for texts with the same words, whatever their case and punctuation."""
    folded = unicodedata.normalize("NFKC", text.casefold())
    words = " ".join(re.findall(r"\w+", folded)) or " ".join(folded.split())
    return hashlib.blake2b(f"{kind}\0{words}".encode(), digest_size=16).digest()


def _whole_key(conversation: Conversation) -> bytes:
    return normalised_key("\0".join(f"{message.role}\0{message.content}" for message in conversation.messages))
