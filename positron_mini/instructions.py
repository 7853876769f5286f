"""Instruction data: JSONL files to conversations, checked line by line, and conversations to ids, split for validation.

Every line is used or named: one that cannot be used stops the reading with its number and what was expected or, with `skip_bad`, is listed.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from positron_mini.chat_format import ROLES, Encoded, Message, Role, encode_chat
from positron_mini.corpus.split import normalised_key
from positron_mini.errors import DataError
from positron_mini.tokenizer import Tokenizer

SHAPES = (
    '{"instruction", "input" (optional), "output"}',
    '{"prompt", "completion" or "response"}',
    '{"question", "answer"}',
    '{"messages": [{"role", "content"}, ...]}',
)
# question field, answer fields (the first that is there counts), optional field with what the question is about
_PAIRS = (("instruction", ("output",), "input"), ("prompt", ("completion", "response"), None), ("question", ("answer",), None))
_MAX_LINE_BYTES = 1 << 24
_LONG_QUESTION_WORDS = 40  # a question with its own text to read: it, not the answer, says what the row is about
_TELLING_ANSWER_WORDS = 4  # shorter answers ("Yes.", "A red ball.") are shared by rows that have nothing else in common
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
    """What a file holds."""

    lines: int  # without blank ones
    shapes: dict[str, int]  # usable lines by the field that gives their shape away
    bad: tuple[BadLine, ...]


@dataclass(frozen=True)
class Conversations:
    """The usable lines of `path`, in its order."""

    path: Path
    conversations: tuple[Conversation, ...]
    report: ReadReport


@dataclass(frozen=True)
class InstructionReport:
    """What will be trained on. `tokens` and `trained_tokens` are those of the training rows, one epoch."""

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
    bad: tuple[BadLine, ...]  # all lines left out, those that were too long included

    @property
    def trained_share(self) -> float:
        """The share of the tokens that the model learns to write."""
        return self.trained_tokens / max(self.tokens, 1)


@dataclass(frozen=True)
class Instructions:
    """Encoded rows for training and validation, in the order of the file."""

    train: tuple[Encoded, ...] = field(repr=False)
    validation: tuple[Encoded, ...] = field(repr=False)
    report: InstructionReport


class _Wrong(Exception):
    """Why a line cannot be used."""


def read_conversations(path: Path | str, *, skip_bad: bool = False) -> Conversations:
    """The conversations in a JSONL file, one object a line, each of one of `SHAPES`; other fields are ignored.

    A byte-order mark, CRLF and blank lines are accepted. Contents lose outer white space. Errors: DataError for a file that cannot be
    read or has no usable line, and for the first line that cannot be used, unless `skip_bad` counts and lists those instead.
    """
    path = Path(path)
    found: list[Conversation] = []
    bad: list[BadLine] = []
    shapes: Counter[str] = Counter()
    for number, data in _lines(path):
        try:
            shape, messages = _conversation(_parse(data))
        except _Wrong as wrong:
            _refuse(path, BadLine(number, str(wrong)), bad, skip_bad)
            continue
        shapes[shape] += 1
        found.append(Conversation(messages, number))
    if not found:
        raise _nothing_usable(path, bad)
    return Conversations(path, tuple(found), ReadReport(len(found) + len(bad), dict(shapes), tuple(bad)))


def _refuse(path: Path, line: BadLine, bad: list[BadLine], skip_bad: bool) -> None:
    if not skip_bad:
        raise DataError(f"{path}, line {line.line}: {line.what}", "correct the line, or leave such lines out: --skip_bad")
    bad.append(line)


def _nothing_usable(path: Path, bad: Sequence[BadLine]) -> DataError:
    why = f"none of its {len(bad):,} lines can be used; line {bad[0].line}: {bad[0].what}" if bad else "it has no line with text"
    return DataError(f"{path}: {why}", f"give a JSONL file with one object a line, such as {SHAPES[0]}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines that are not blank, from 1, without line ends and byte-order mark. Errors: DataError."""
    if path.is_dir():
        raise DataError(f"{path}: a folder, a JSONL file is expected", f"ls '{path}' shows its files; join several with cat")
    try:
        with open(path, "rb") as handle:
            for number, line in enumerate(iter(lambda: handle.readline(_MAX_LINE_BYTES), b""), 1):
                if len(line) == _MAX_LINE_BYTES:
                    raise DataError(f"{path}, line {number}: longer than {_MAX_LINE_BYTES:,} bytes", "put one JSON object on each line")
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield number, text
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", "name a JSONL file: --sft_data tiny_instruct_sample.jsonl") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot be read ({error})", f"ls -l '{path}' shows who may read it") from error


def _parse(data: bytes) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
        value = json.loads(data.rstrip(b"\r\n").decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _Wrong(f"byte {error.start + 1:,} is not UTF-8; UTF-8 is expected") from None
    except RecursionError:
        raise _Wrong("brackets nested too deeply; texts are expected, not nested values") from None
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        what = "the JSON is cut off" if is_cut else "not JSON"
        raise _Wrong(f"{what} ({error.msg}, column {error.colno}); one whole object on one line is expected") from None
    except ValueError as error:  # an absurd number, NaN
        raise _Wrong(f"not JSON ({str(error)[:80]})") from None
    if isinstance(value, dict):
        return value
    raise _Wrong(f"{_kind(value)}, an object is expected" + ("; jq -c '.[]' makes lines of an array" if isinstance(value, list) else ""))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def join_input(instruction: str, text: str) -> str:
    """The question that an instruction and its input make: the input first, so that what is asked stands right before the answer.

    A small model then has to look back only a few tokens for the question, though it read the input without knowing it.
    """
    return f"{text.strip()}\n{instruction.strip()}".strip()


def _conversation(row: dict[str, Any]) -> tuple[str, tuple[Message, ...]]:
    """The field that gives the shape away, and the messages."""
    if "messages" in row:
        return "messages", _checked(tuple(_messages(row["messages"])))
    for question, answers, extra in _PAIRS:
        present = [name for name in answers if name in row]
        if question not in row:
            continue
        if not present:
            missing, expected = '" or "'.join(answers), next(shape for shape in SHAPES if shape.startswith(f'{{"{question}"'))
            raise _Wrong(f'no field "{missing}"; {expected} is expected')
        asked = _text(row[question], f'field "{question}"')
        if extra is not None and row.get(extra) is not None:
            asked = join_input(asked, _text(row[extra], f'field "{extra}"'))
        if not asked:
            raise _Wrong(f'field "{question}" is empty; a question or request is expected')
        answer = _text(row[present[0]], f'field "{present[0]}"')
        if not answer:
            raise _Wrong(f'field "{present[0]}" is empty; an answer is expected, nothing else is learned')
        return question, (Message("user", asked), Message("assistant", answer))
    names = ", ".join(json.dumps(name[:30]) for name in list(row)[:8]) or "no fields"
    raise _Wrong(f"unknown shape ({names}); expected is one of: " + "; ".join(SHAPES))


def _messages(value: Any) -> Iterator[Message]:
    if not isinstance(value, list):
        raise _Wrong(f'field "messages" is {_kind(value)}, a list of {{"role", "content"}} is expected')
    for at, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise _Wrong(f'message {at} is {_kind(item)}, {{"role", "content"}} is expected')
        for name in ("role", "content"):
            if name not in item:
                raise _Wrong(f'message {at} has no field "{name}"; {{"role", "content"}} is expected')
        role = item["role"]
        if not (isinstance(role, str) and role in ROLES):
            shown = json.dumps(role[:30]) if isinstance(role, str) else _kind(role)
            raise _Wrong(f"message {at} has the role {shown}, one of {', '.join(ROLES)} is expected")
        content = _text(item["content"], f'the "content" of message {at}')
        if role == "system" and at > 1:
            raise _Wrong(f"message {at} is a system message; only the first may be")
        if not content and role != "system":
            raise _Wrong(f"message {at} ({role}) is empty; text is expected")
        if content:
            yield Message(cast(Role, role), content)


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, if anything can be learned from them, without turns after the last answer."""
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise _Wrong("nothing to train on: there is no assistant message, and only those are learned")
    if not any(message.role == "user" for message in messages[: answers[0]]):
        raise _Wrong("the first answer has no user message before it")
    return messages[: answers[-1] + 1]


def _text(value: Any, where: str) -> str:
    """The text without outer white space."""
    if not isinstance(value, str):
        raise _Wrong(f"{where} is {_kind(value)}, a string is expected")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Wrong(f"{where} holds half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no character") from None
    return value.strip()


def _kind(value: Any) -> str:
    """What JSON calls this value."""
    return {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def encode_conversations(
    tokenizer: Tokenizer, read: Conversations, context_len: int, *, skip_bad: bool = False, validation_share: float = 0.05
) -> Instructions:
    """The conversations as ids with masks, split into training and validation (see `split_conversations`), and the report.

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
    )


def report_lines(report: InstructionReport) -> list[str]:
    """The report as lines of text, the first ten lines that were left out included."""
    shapes = ", ".join(f"{count:,} {name}" for name, count in sorted(report.shapes.items()))
    lines = [
        f"{report.path}: {report.examples:,} conversations ({shapes}), longest {report.longest:,} tokens",
        f"training: {report.train:,} rows, {report.tokens:,} tokens, {report.trained_share:.0%} of them trained (answers only)",
        f"validation: {report.validation:,} rows that share no question and no telling answer with training",
    ]
    if report.duplicates:
        lines.append(f"duplicates: {report.duplicates:,} rows equal an earlier one; they are kept, on one side of the split")
    if report.bad:
        lines.append(f"left out: {len(report.bad):,} of {report.lines:,} lines, {report.too_long:,} of them longer than the context")
        lines += [f"  line {bad.line}: {bad.what}" for bad in report.bad[:_LISTED]]
    if len(report.bad) > _LISTED:
        lines.append(f"  and {len(report.bad) - _LISTED:,} more")
    return lines


def split_conversations(conversations: Sequence[Conversation], share: float = 0.05) -> list[bool]:
    """For each conversation whether it is held out for validation: about `share` of them, at least one, decided by their texts alone.

    Conversations that ask or teach the same never stand on both sides, or validation would measure memory. Equal are: first questions,
    up to case, punctuation and spacing; the answers of short single-turn rows, because "What is gravity?" and "Explain gravity." with one
    answer are one fact asked twice; and the longest paragraph of long questions, because two questions about one story share that story.
    Answers of fewer than four words ("Yes.") say too little to count, and an answer or paragraph that more than 20 rows and a twentieth
    of all share is a phrase, not a fact. Groups are taken in the order of a hash, those that would overshoot the share passed over.
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
    """The smallest key that `key` is joined with; paths are halved on the way."""
    parent.setdefault(key, key)
    while parent[key] != key:
        parent[key] = parent[parent[key]]
        key = parent[key]
    return key


def _first_question(conversation: Conversation) -> int:
    return next(at for at, message in enumerate(conversation.messages) if message.role == "user")


def _topic(conversation: Conversation) -> bytes:
    """A key of what a row is about besides its question, or nothing."""
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
