"""One row of fine-tuning data to one conversation: a table of formats, and the rules that all of them share.

Every field is used or reported: `Reading.left_out` lists the fields that are not used. Ambiguous rows are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from positron_mini.text.chat_format import Message, Role
from positron_mini.text.corpus.rows import is_message, kind_of_value


@dataclass(frozen=True)
class Format:
    """A kind of row, identified by the field `key`: it holds the turns or, if there are fields for `answers`, the question."""

    key: str
    answers: tuple[str, ...] = ()  # the first existing one counts
    about: tuple[str, ...] = ()  # context of the question, put before it
    used_by: str = ""

    @property
    def fields(self) -> str:
        """The fields in words."""
        about = "".join(f', "{name}" (optional)' for name in self.about[:1])
        answers = f', "{self.answers[0]}"' if self.answers else ""
        return f'{{"{self.key}"{about}{answers}}}'


FORMATS = (
    Format("messages", used_by="OpenAI, TRL, Hugging Face"),
    Format("conversations", used_by="ShareGPT, minimind"),
    Format("conversation", used_by="LMSYS"),
    Format("instruction", ("output", "response"), ("input", "context"), used_by="Alpaca, Dolly"),
    Format("prompt", ("completion", "response"), used_by="OpenAI, TRL"),
    Format("question", ("answer", "response"), ("context",), used_by="OpenOrca"),
    Format("input", ("output",), used_by="many"),
)
ROLE_NAMES: Mapping[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model"),
}
ROLES: Mapping[str, Role] = {name: role for role, names in ROLE_NAMES.items() for name in names}
TOOL_ROLES = frozenset(
    ("tool", "function", "ipython", "observation", "function_call", "function_response", "tool_call", "tool_calls", "tool_response")
)
ROLE_FIELDS, CONTENT_FIELDS = ("role", "from"), ("content", "value")
SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
HISTORY = "history"
# flags of a turn, or of all turns of a row, and whether true means that it is learned
FLAGS = {"weight": True, "train": True, "loss": True, "mask": False, "masked": False}
# the same in words, as tables have them; an empty cell says nothing
YES_NO = {"": None, "0": False, "0.0": False, "false": False, "no": False, "1": True, "1.0": True, "true": True, "yes": True}


class WrongRow(Exception):
    """Reason why a row cannot be used; `program` is a jq program that converts its file."""

    def __init__(self, what: str, program: str = "") -> None:
        super().__init__(what)
        self.program = program


class Reading(NamedTuple):
    """A conversation, the key of its format, and its non-empty fields that are not used."""

    shape: str
    messages: tuple[Message, ...]
    left_out: tuple[str, ...]


def read_row(row: Any) -> Reading:
    """Parse the conversation in a row. Errors: WrongRow."""
    if isinstance(row, list) and row and is_message(row[0]):  # nanochat: a row is the list itself
        row = {"messages": row}
    if not isinstance(row, dict):
        raise WrongRow(f"{kind_of_value(row)}, an object is expected")
    key = _first([form.key for form in FORMATS], row)
    if key is None:
        raise _unknown(row)
    found = next(form for form in FORMATS if form.key == key)
    used = {key, *SYSTEM_FIELDS, HISTORY}
    if found.answers:
        answer, about = _answer_field(found, row), next((name for name in found.about if row.get(name) is not None), None)
        used |= {answer, about or answer}
        messages, extra = _asked_and_answered(row, key, about, answer)
    else:
        messages, extra = _turns(row[key], f'field "{key}"')
    own = messages[:1] if messages and messages[0].role == "system" else []
    history, more = _history(row)
    messages = [*_system(row, own), *history, *messages[len(own) :]]
    is_learned, flags = _flag(row, "the row", is_strict=False)
    left_out = [json.dumps(name[:30]) for name in _saying(row) if name not in used | flags]
    return Reading(key, _checked(_mark(messages, is_learned)), tuple(dict.fromkeys([*left_out, *extra, *more])))


def _first(names: Sequence[str], row: dict[str, Any]) -> str | None:
    """First of the fields with a value, else the first existing one."""
    present = [name for name in names if name in row]
    return next((name for name in present if row[name] is not None), present[0] if present else None)


def _saying(item: dict[str, Any]) -> list[str]:
    """Fields that are not empty."""
    return [name for name, value in item.items() if value not in (None, "", [], {})]


def join_input(instruction: str, text: str) -> str:
    """Question from an instruction and its input: the input first, so that the question is right before the answer.

    A small model then has to look back only a few tokens for the question, though it reads the input without knowing it.
    """
    return trimmed(f"{trimmed(text)}\n{trimmed(instruction)}")


def trimmed(text: str) -> str:
    """The text without white space around it, but with the indent of its first line: a tab, or more than one space."""
    body = text.lstrip()
    indent = text[: len(text) - len(body)].rpartition("\n")[2].rpartition("\r")[2]
    is_indent = bool(body) and not indent.strip(" \t") and ("\t" in indent or len(indent) > 1)
    return (indent if is_indent else "") + body.rstrip()


# --- rows with a question and an answer --------------------------------------------------------------------------------------------


def _asked_and_answered(row: dict[str, Any], key: str, about: str | None, answer: str) -> tuple[list[Message], list[str]]:
    """Turns of a question and an answer, each a text or a list of turns (TRL); only those of the answer are learned."""
    asked, extra = _as_turns(row[key], key, "user")
    if about is not None:
        if len(asked) > 1:
            raise WrongRow(f'both turns and a field "{about}"; one question is expected beside it')
        text = join_input(asked[0].content if asked else "", _text(row[about], f'field "{about}"'))
        asked = [Message("user", text)] if text else []
    if not asked:
        raise WrongRow(f'field "{key}" is empty; a question or request is expected')
    answered, more = _as_turns(row[answer], answer, "assistant")
    if not answered:
        raise WrongRow(f'field "{answer}" is empty; an answer is expected, nothing else is learned')
    return [*_mark(asked, False), *answered], [*extra, *more]


def _answer_field(found: Format, row: dict[str, Any]) -> str:
    """Name of the field with the answer. Errors: WrongRow if there is none."""
    name = _first(found.answers, row)
    if name is None:
        names = '" or "'.join(found.answers)
        if "chosen" in row:
            raise WrongRow(f'no field "{names}" but preference pairs; only the chosen answers can be learned', _chosen(row))
        raise WrongRow(f'no field "{names}"; {found.fields} is expected')
    return name


def _chosen(row: dict[str, Any]) -> str:
    """A jq program that converts preference pairs; empty if the prompt is repeated inside the answer."""
    is_whole = isinstance(row["chosen"], list) and not isinstance(row.get("prompt"), list)
    return "{messages: .chosen}" if is_whole else "{prompt, completion: .chosen}" if "prompt" in row else ""


def _as_turns(value: Any, name: str, role: Role) -> tuple[list[Message], list[str]]:
    """Turns in a field that holds a text or a list of them."""
    if isinstance(value, list) and value and is_message(value[0]):
        return _turns(value, f'field "{name}"')
    text = _text(value, f'field "{name}"')
    return [Message(role, text)] if text else [], []


def _system(row: dict[str, Any], own: list[Message]) -> list[Message]:
    """System message: that of the turns, or one made from a field of the row."""
    texts = {name: _text(row[name], f'field "{name}"') for name in SYSTEM_FIELDS if row.get(name) is not None}
    made = {name: Message("system", text) for name, text in texts.items() if text}
    if len(made) + len(own) > 1:
        raise WrongRow("two system texts; one is expected: " + ", ".join([*made, *["the first message"] * len(own)]))
    return [*made.values(), *own]


def _history(row: dict[str, Any]) -> tuple[list[Message], list[str]]:
    """Turns before the question: a list of pairs, or of turns."""
    history = row.get(HISTORY)
    if history in (None, "", []):
        return [], []
    if isinstance(history, list) and is_message(history[0]):
        return _turns(history, f'field "{HISTORY}"')
    if not (isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)):
        raise WrongRow(f'field "{HISTORY}" is {kind_of_value(history)} of another kind; a list of [question, answer] is expected')
    pairs = [{"role": role, "content": text} for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]
    return _turns(pairs, f'field "{HISTORY}"')


def _unknown(row: dict[str, Any]) -> WrongRow:
    """The error for a row of no format, with a way to convert the file if there is one."""
    names = ", ".join(json.dumps(name[:30]) for name in list(row)[:8]) or "no fields"
    lists = [name for name, value in row.items() if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)]
    if "chosen" in row:
        return WrongRow(f"unknown shape ({names}): preference pairs; only the chosen answers can be learned", _chosen(row))
    if len(lists) == 1 and re.fullmatch(r"\w+", lists[0], re.ASCII):
        return WrongRow(f'one object that holds rows in its field "{lists[0]}"; rows are expected', f".{lists[0]}[]")
    if is_message(row):
        return WrongRow(f"a turn by itself ({names}); a whole list of turns is expected in a row")
    why = "; a plain text is for pretraining: positron train --dataset_path" if "text" in row else ""
    return WrongRow(f"unknown shape ({names}); expected is one of: " + "; ".join(form.fields for form in FORMATS) + why)


# --- turns -------------------------------------------------------------------------------------------------------------------------


def _turns(value: Any, where: str) -> tuple[list[Message], list[str]]:
    """Turns in a list, and their non-empty fields that are not used. Empty system texts are dropped."""
    if not isinstance(value, list):
        raise WrongRow(f'{where} is {kind_of_value(value)}, a list of {{"role", "content"}} is expected')
    messages, extra = [], []
    for at, item in enumerate(value, 1):
        message, names = _turn(item, at)
        if message.role == "system" and at > 1:
            raise WrongRow(f"message {at} is a system message; only the first may be")
        if not message.content and message.role != "system":
            raise WrongRow(f"message {at} ({message.role}) is empty; text is expected")
        messages += [message] if message.content else []
        extra += names
    return messages, extra


def _turn(item: Any, at: int) -> tuple[Message, list[str]]:
    if not isinstance(item, dict):
        raise WrongRow(f'message {at} is {kind_of_value(item)}, {{"role", "content"}} is expected')
    role_field, content_field = _first(ROLE_FIELDS, item), _first(CONTENT_FIELDS, item)
    if role_field is None:
        raise WrongRow(f'message {at} has no field "role"; {{"role", "content"}} is expected')
    role = item[role_field]
    if (isinstance(role, str) and role in TOOL_ROLES) or item.get("tool_calls") or item.get("function_call"):
        raise WrongRow(f"message {at} is a tool's turn; this chat format has the roles system, user and assistant")
    if not (isinstance(role, str) and role in ROLES):
        shown = json.dumps(role[:30]) if isinstance(role, str) else kind_of_value(role)
        raise WrongRow(f"message {at} has the role {shown}, one of {', '.join(ROLES)} is expected")
    if content_field is None:
        raise WrongRow(f'message {at} has no field "content"; {{"role", "content"}} is expected')
    content = _content(item[content_field], f'the "{content_field}" of message {at}')
    is_learned, flags = _flag(item, f"message {at}", is_strict=True)
    obeyed = flags if ROLES[role] == "assistant" or not is_learned else set()  # only answers can be learned
    left_out = [f"{json.dumps(name[:30])} of turns" for name in _saying(item) if name not in {role_field, content_field, *obeyed}]
    return Message(ROLES[role], content, is_learned or ROLES[role] != "assistant"), left_out


def _content(value: Any, where: str) -> str:
    """Text of a turn: a string, or a list of parts of type text, which are joined."""
    if not isinstance(value, list):
        return _text(value, where)
    parts = []
    for at, part in enumerate(value, 1):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = json.dumps(str(part.get("type"))[:30]) if isinstance(part, dict) else kind_of_value(part)
            raise WrongRow(f"{where} is an array, and part {at} of it holds no text (type {kind}); only texts can be read")
        parts.append(text)
    return _text("".join(parts), where)


def _flag(item: dict[str, Any], where: str, *, is_strict: bool) -> tuple[bool, set[str]]:
    """Whether the flags of a turn or row let it be learned, and which they are. With `is_strict`, values other than yes or no are refused.
    """
    found: dict[str, bool] = {}
    for name, says_learned in FLAGS.items():
        value = item.get(name)
        value = YES_NO.get(value.strip().lower(), value) if isinstance(value, str) else value
        if value is None:
            continue
        if value in (0, 1):  # true and false equal 1 and 0
            found[name] = bool(value) == says_learned
        elif is_strict:
            raise WrongRow(f'the "{name}" of {where} is neither 0 nor 1, true nor false')
    return all(found.values()), set(found)


def _mark(messages: list[Message], is_learned: bool) -> list[Message]:
    """The messages, with answers learned only if `is_learned` and after a question: a greeting that nobody asked for is only read."""
    first = next((at for at, message in enumerate(messages) if message.role == "user"), len(messages))
    return [
        replace(message, learned=message.learned and is_learned and at > first) if message.role == "assistant" else message
        for at, message in enumerate(messages)
    ]


def _checked(messages: list[Message]) -> tuple[Message, ...]:
    """The messages up to the last learned answer. Raise WrongRow if nothing can be learned from them."""
    if not any(message.role == "assistant" for message in messages):
        raise WrongRow("nothing to train on: there is no assistant message, and only those are learned")
    roles = [message.role for message in messages]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        raise WrongRow("there is no user message before an answer")
    learned = [at for at, message in enumerate(messages) if message.role == "assistant" and message.learned]
    if not learned:
        raise WrongRow("nothing to train on: every answer is marked as not to be learned")
    return tuple(messages[: learned[-1] + 1])


def _text(value: Any, where: str) -> str:
    """Text of a field, trimmed."""
    if not isinstance(value, str):
        raise WrongRow(f"{where} is {kind_of_value(value)}, a string is expected")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise WrongRow(f"{where} holds half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no character") from None
    return trimmed(value)
