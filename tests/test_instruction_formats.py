"""Laws of the formats of fine-tuning data: every field is obeyed or named, and what the page shows is what is read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.project import ROOT
from helpers.texts import documents_of, story_tokenizer
from positron_mini.chat.conversations import encode_conversations, read_conversations, report_lines, split_conversations
from positron_mini.chat.formats import FLAGS, FORMATS, HISTORY, ROLES, SYSTEM_FIELDS, TOOL_ROLES, WrongRow, read_row, trimmed
from positron_mini.errors import DataError
from positron_mini.text.chat_format import Message, encode_chat, show_mask_lines

PAGE = (ROOT / "docs" / "fine-tuning-data.md").read_text(encoding="utf-8")
EXAMPLES = [
    (line, shown) for lines, shown in re.findall(r"```json\n(.*?)```\n```text\n(.*?)```", PAGE, re.S) for line in lines.splitlines()
]
REFUSED = re.findall(r"^\| `(\{.*?\})` \| (.*?) \| (.*?) \|$", PAGE, re.M)
QUESTION, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def as_shown(messages: tuple[Message, ...]) -> str:
    """The conversation as the page writes it: a star before what is learned."""
    lines = ""
    for message in messages:
        mark = "*" if message.role == "assistant" and message.learned else " "
        first, *more = message.content.split("\n")
        lines += "".join([f"{mark} {message.role:<10} {first}\n", *(f"{'':13}{line}\n" for line in more)])
    return lines


def turns_of(row: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in read_row(row).messages]


def learned_of(row: Any) -> list[str]:
    return [message.content for message in read_row(row).messages if message.role == "assistant" and message.learned]


def messages(*turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": list(turns), **fields}


# --- the page ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "shown"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_of_the_page_becomes_the_conversation_beside_it(tmp_path: Path, line: str, shown: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(line)
    (conversation,) = read_conversations(path).conversations
    assert as_shown(conversation.messages) == shown


def test_the_page_shows_every_format_every_name_of_a_role_and_every_flag() -> None:
    assert {read_row(json.loads(line)).shape for line, _ in EXAMPLES} == {form.key for form in FORMATS}
    for name in (*ROLES, *SYSTEM_FIELDS, HISTORY, *FLAGS):
        assert f"`{name}`" in PAGE or f'`"{name}"' in PAGE, name
    for form in FORMATS:
        assert all(f'"{field}"' in PAGE for field in (*form.answers, *form.about))


@pytest.mark.parametrize(("row", "says", "helps"), REFUSED, ids=range(len(REFUSED)))
def test_every_refusal_of_the_page_is_said_with_its_way_out(tmp_path: Path, row: str, says: str, helps: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(row)
    with pytest.raises(DataError, match=f"^{path}, line 1: .*{re.escape(says)}") as error:
        read_conversations(path)
    assert "--skip_bad" in error.value.hint
    assert not helps.startswith("`") or helps.strip("`") in error.value.message + error.value.hint


# --- what is learned ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"loss": False}, {"mask": True}, {"masked": 1}, {"weight": 0.0}])
def test_an_answer_that_is_marked_is_read_and_not_learned(flag: dict[str, Any]) -> None:
    row = messages(QUESTION, {**ANSWER, **flag}, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"})
    assert turns_of(row) == [("user", "Q"), ("assistant", "A"), ("user", "Q2"), ("assistant", "A2")]
    assert learned_of(row) == ["A2"]
    spans = show_mask_lines(story_tokenizer(), encode_chat(story_tokenizer(), read_row(row).messages))
    assert [span.text for span in spans if span.trained] == ["A2<|im_end|>"]


@pytest.mark.parametrize("flag", [{"weight": 1}, {"train": True}, {"loss": True}, {"mask": False}, {"masked": 0}, {"train": None}])
def test_an_answer_that_is_marked_to_be_learned_is(flag: dict[str, Any]) -> None:
    assert learned_of(messages(QUESTION, {**ANSWER, **flag})) == ["A"]
    assert read_row(messages(QUESTION, {**ANSWER, **flag})).left_out == ()


def test_a_mark_of_a_row_holds_for_its_answers_and_another_value_is_named() -> None:
    for row in ({"prompt": "Q", "completion": "A"}, messages(QUESTION, ANSWER)):
        with pytest.raises(WrongRow, match="every answer is marked as not to be learned"):
            read_row({**row, "train": False})
        assert read_row({**row, "weight": 0.7, "loss": 1.25, "mask": "User"}).left_out == ('"weight"', '"loss"', '"mask"')
    with pytest.raises(WrongRow, match='the "weight" of message 2 is neither 0 nor 1'):
        read_row(messages(QUESTION, {**ANSWER, "weight": 0.5}))


def test_turns_after_the_last_learned_answer_are_dropped_and_a_mark_cannot_make_a_question_learned() -> None:
    row = messages({**QUESTION, "train": True}, ANSWER, QUESTION, {**ANSWER, "train": False})
    assert turns_of(row) == [("user", "Q"), ("assistant", "A")]
    assert read_row(row).left_out == ('"train" of turns',)
    spans = encode_chat(story_tokenizer(), read_row(row).messages)
    assert sum(spans.trained) == sum(encode_chat(story_tokenizer(), [Message("user", "Q"), Message("assistant", "A")]).trained)


def test_what_is_read_only_does_not_decide_what_is_held_out_for_validation(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    read_only = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi there.", "train": False}]
    rows = []
    for i in range(400):
        asked = [{"role": "user", "content": f"Who is {i // 2}?"}, {**ANSWER, "content": f"He is number {i // 2}."}]
        rows.append(messages(*(read_only * (i % 2)), *asked))
    path.write_text("\n".join(map(json.dumps, rows)))
    held = split_conversations(read_conversations(path).conversations)
    assert sum(held) == 20
    assert held[0::2] == held[1::2]  # the question with and without turns before it stands on one side


# --- fields ------------------------------------------------------------------------------------------------------------------------


def test_fields_that_say_something_are_named_with_the_number_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    tools, empty = {"tools": [{"name": "f"}]}, {"tools": None, "id": "", "tags": []}
    rows = [messages({**QUESTION, "content": f"Q{i}", "name": "Tom"}, ANSWER, **(tools if i < 12 else empty)) for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    read = read_conversations(path)
    assert read.report.left_out == {'"tools"': 12, '"name" of turns': 30}
    lines = report_lines(encode_conversations(story_tokenizer(), read, 512).report)
    assert 'fields that are not used: "name" of turns of 30 rows, "tools" of 12 rows' in lines


def test_of_two_system_texts_neither_is_chosen() -> None:
    for row in (messages({"role": "system", "content": "a"}, QUESTION, ANSWER, system="b"),
                {"system": "a", "system_prompt": "b", "prompt": "Q", "completion": "A"}):  # fmt: skip
        with pytest.raises(WrongRow, match="two system texts; one is expected"):
            read_row(row)
    assert turns_of({"system": "", "system_prompt": "a", "prompt": "Q", "completion": "A"})[0] == ("system", "a")


def test_history_stands_between_the_system_text_and_the_question() -> None:
    row = messages(
        {"role": "system", "content": "S"}, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}, history=[["Q", "A"]]
    )
    expected = [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "Q2"), ("assistant", "A2")]
    assert turns_of(row) == expected
    assert turns_of({**row, "history": [QUESTION, ANSWER]}) == expected
    assert turns_of({**row, "history": []}) == [expected[0], *expected[3:]]
    for wrong in ("Q", [["Q"]], [["Q", None]], [["Q", ""]], {"Q": "A"}):
        with pytest.raises(WrongRow):
            read_row({**row, "history": wrong})


@pytest.mark.parametrize("role", sorted(TOOL_ROLES))
def test_tools_turns_are_refused_and_counted_when_skipped(tmp_path: Path, role: str) -> None:
    path = tmp_path / "data.jsonl"
    good, bad = messages(QUESTION, ANSWER), messages(QUESTION, {"role": role, "content": "x"}, ANSWER)
    called = messages(QUESTION, {"role": "assistant", "content": None, "tool_calls": [{}]})
    path.write_text("\n".join(map(json.dumps, [good, bad, called])))
    with pytest.raises(DataError, match="line 2: message 2 is a tool's turn"):
        read_conversations(path)
    assert [line.line for line in read_conversations(path, skip_bad=True).report.bad] == [2, 3]


def test_parts_that_are_no_text_are_refused_by_their_number() -> None:
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(WrongRow, match=r'the "content" of message 1 is an array, and part 2 of it holds no text .type "image_url"'):
        read_row(messages({"role": "user", "content": [{"type": "text", "text": "a"}, picture]}, ANSWER))
    with pytest.raises(WrongRow, match=r"message 1 .user. is empty"):
        read_row(messages({"role": "user", "content": []}, ANSWER))


def test_a_conversation_in_which_nobody_asks_is_refused() -> None:
    for turns in ([ANSWER], [ANSWER, QUESTION], [ANSWER, ANSWER]):
        with pytest.raises(WrongRow, match="no user message before an answer"):
            read_row(messages(*turns))


OTHER_NAMES = ("role", "from", "content", "value", "chosen", "text", "data", "type", "tool_calls", "\x1b[31m")
FIELDS = tuple(name for form in FORMATS for name in (form.key, *form.answers, *form.about))
NAMES = st.sampled_from([*FIELDS, *SYSTEM_FIELDS, HISTORY, *FLAGS, *OTHER_NAMES])
VALUES = st.recursive(
    st.sampled_from(["", "x", "user", "assistant", "gpt", "tool", "system", 0, 1, 0.5, -1, True, False, None, "\ud800", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=600)
@given(VALUES)
def test_D5_any_row_is_a_conversation_with_something_to_learn_or_refused_in_words(row: Any) -> None:
    try:
        reading = read_row(row)
    except WrongRow as wrong:
        said = str(wrong)
    else:
        said = "".join(reading.left_out)
        assert reading.messages[-1].role == "assistant" and reading.messages[-1].learned
        assert any(message.role == "user" for message in reading.messages[:-1])
        assert all(message.content for message in reading.messages)
    assert said.isascii() and said.isprintable() and len(said) < 400


# --- white space -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("    return x\n", "    return x"),
        ("\n\n  - one\n  - two \n\n", "  - one\n  - two"),
        ("\tx", "\tx"),
        ("\r\n\tx\r\n", "\tx"),
        ("   \n  x", "  x"),
        (" x", "x"),  # completions of the old kind begin with the space before their first word
        ("\n x ", "x"),
        ("  \n", ""),
        ("\t", ""),
        ("\u2003\u2003x", "x"),
        ("x\n  y", "x\n  y"),
    ],
)
def test_a_text_keeps_the_indent_of_its_first_line_and_no_other_white_space_around_it(text: str, kept: str) -> None:
    assert trimmed(text) == kept
    if kept:
        spans = show_mask_lines(story_tokenizer(), encode_chat(story_tokenizer(), read_row({"prompt": "Q", "completion": text}).messages))
        assert [span.text for span in spans if span.trained] == [f"{kept}<|im_end|>"]
        assert turns_of({"instruction": text, "input": "", "output": text}) == [("user", kept), ("assistant", kept)]
        assert turns_of({"instruction": "Q", "input": text, "output": "A"})[0] == ("user", f"{kept}\nQ")


# --- files -------------------------------------------------------------------------------------------------------------------------

CHOSEN = {"prompt": "Hi.", "chosen": "Hello!", "rejected": "Go."}
WHOLE = {"prompt": "Hi.", "chosen": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]}
LISTS = {"prompt": [{"role": "user", "content": "Hi."}], "chosen": [{"role": "assistant", "content": "Hello!"}]}
CONVERTED = {
    "pairs": json.dumps(CHOSEN),
    "pairs, two lines": json.dumps(CHOSEN) + "\n" + json.dumps(CHOSEN),
    "pairs in an array": json.dumps([CHOSEN, CHOSEN], indent=1),
    "pairs in an array in one line": json.dumps([CHOSEN, CHOSEN]),
    "whole conversations": json.dumps(WHOLE),
    "lists of turns": json.dumps(LISTS),
    "rows in a field": json.dumps({"version": 1, "data": [{"prompt": "Hi.", "completion": "Hello!"}]}, indent=2),
}


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize("name", CONVERTED)
def test_the_command_that_converts_a_file_makes_one_that_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a person's $(data).json"
    path.write_text(CONVERTED[name])
    with pytest.raises(DataError) as error:
        read_conversations(path)
    command, _, _ = error.value.hint.partition("   or leave")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60)
    (made,) = tmp_path.glob("*-lines.jsonl")
    assert {as_shown(c.messages) for c in read_conversations(made).conversations} == {"  user       Hi.\n* assistant  Hello!\n"}


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("value", [[{"text": "One."}, {"text": "Two."}], {"text": "One."}])
def test_the_command_that_converts_json_for_pretraining_keeps_its_texts(tmp_path: Path, value: Any, indent: int | None) -> None:
    path = tmp_path / "stories.json"
    path.write_text(json.dumps(value, indent=indent))
    texts = [item["text"] for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, dict) and indent is None:  # JSON Lines by another name
        assert documents_of(path) == texts
        return
    with pytest.raises(DataError, match="JSON that is not one object a line") as error:
        documents_of(path)
    subprocess.run(["bash", "-c", error.value.hint], cwd=tmp_path, check=True, timeout=60)
    assert documents_of(tmp_path / "stories-lines.jsonl") == texts
