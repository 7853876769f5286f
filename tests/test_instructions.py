"""Laws of reading instruction data: every line is used or named, and validation shares nothing with training."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.texts import story_tokenizer
from positron_mini.chat.conversations import (
    BadLine,
    Conversation,
    encode_conversations,
    read_conversations,
    report_lines,
    split_conversations,
)
from positron_mini.chat.formats import join_input
from positron_mini.errors import DataError
from positron_mini.text.chat_format import Message, encode_chat

GOOD = '{"instruction": "Say hi.", "output": "Hi."}'
HANDWRITTEN = Path(str(files("positron_mini.text.corpus").joinpath("instructions_handwritten.jsonl")))


def jsonl(folder: Path, *lines: str | bytes, end: str = "\n") -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + end.encode() for line in lines))
    return path


def texts_of(path: Path, **options: bool) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.content) for m in c.messages] for c in read_conversations(path, **options).conversations]


def asked(question: str, answer: str, line: int = 1) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), line)


# --- lines that can be used --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"instruction": "Q", "output": "A"}, "instruction"),
        ({"instruction": "Q", "input": "", "output": "A", "source": 7}, "instruction"),
        ({"instruction": "Q", "input": None, "output": "A"}, "instruction"),
        ({"prompt": "Q", "completion": "A"}, "prompt"),
        ({"prompt": " Q\n", "response": "\nA ", "id": [[1]]}, "prompt"),
        ({"question": "Q", "answer": "A", "score": None}, "question"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "name": "x"}], "prompt": 3}, "messages"),
        (
            {"messages": [{"role": r, "content": c} for r, c in [("system", " "), ("user", "Q"), ("assistant", "A"), ("user", "B")]]},
            "messages",
        ),
    ],
)
def test_each_shape_becomes_question_and_answer(tmp_path: Path, row: dict[str, Any], shape: str) -> None:
    path = jsonl(tmp_path, json.dumps(row))
    assert texts_of(path) == [[("user", "Q"), ("assistant", "A")]]
    assert read_conversations(path).report.shapes == {shape: 1}


def test_an_input_stands_on_the_line_before_its_instruction(tmp_path: Path) -> None:
    path = jsonl(tmp_path, json.dumps({"instruction": "Opposite? ", "input": " hot ", "output": "Cold."}))
    assert texts_of(path) == [[("user", "hot\nOpposite?"), ("assistant", "Cold.")]]
    assert (join_input("a", ""), join_input("", "b")) == ("a", "b")


def test_turns_stay_in_order_with_a_system_message_first(tmp_path: Path) -> None:
    turns = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    path = jsonl(tmp_path, json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
    assert texts_of(path) == [turns]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n \t\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_blank_lines_and_byte_order_marks_change_nothing(tmp_path: Path, end: str, mark: bytes) -> None:
    path = jsonl(tmp_path, mark + GOOD.encode(), GOOD.replace("hi", "é"), end=end)
    path.write_bytes(path.read_bytes().rstrip())
    assert [turns[0][1] for turns in texts_of(path)] == ["Say hi.", "Say é."]
    assert read_conversations(path).conversations[1].line == 1 + end.count("\n")


def test_of_fields_that_stand_twice_the_last_counts_and_unicode_line_ends_are_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"question": "x", "question": "a\u2028b\x85c", "answer": "A"}')
    assert texts_of(path)[0][0] == ("user", "a\u2028b\x85c")


# --- lines that cannot -------------------------------------------------------------------------------------------------------------

TURNS = '{"messages": [{"role": "user", "content": "Q"}, %s]}'
BAD_LINES = {
    '{"instruction": "x"}': 'no field "output" or "response"; .*"instruction"',
    '{"prompt": "x"}': 'no field "completion" or "response"',
    '{"question": "x", "output": "y"}': 'no field "answer"',
    '{"text": "x"}': r'unknown shape \("text"\); expected is one of: .*"messages"',
    "{}": r"unknown shape \(no fields\)",
    '{"output": "y"}': "unknown shape",
    '{"instruction": 5, "output": "y"}': 'field "instruction" is a number, a string',
    '{"instruction": "x", "output": null}': 'field "output" is null',
    '{"instruction": "x", "input": ["y"], "output": "z"}': 'field "input" is an array',
    '{"instruction": "x", "output": true}': "true or false",
    '{"instruction": "x", "output": " \\n"}': 'field "output" is empty; an answer',
    '{"instruction": "\\t", "input": "", "output": "x"}': 'field "instruction" is empty',
    '{"instruction": "x", "output": "y"': "cut off .*column 35",
    '{"instruction": "x", "outp': "cut off",
    '{"instruction": "x", "output": "y"} {}': "not JSON .Extra data",
    "{'instruction': 'x'}": "not JSON",
    "[1]": "an array, an object is expected",
    "[]": "an array, an object is expected",
    '"text"': "a string, an object is expected",
    "null": "null, an object",
    "12": "a number, an object",
    "[" * 100_000: "nested too deeply",
    '{"a":' * 100_000: "nested too deeply",
    '{"id": ' + "9" * 5_000 + "}": "not JSON .Exceeds the limit",
    '{"question": "x", "answer": "y", "score": NaN}': "NaN is no JSON number",
    '{"question": "x", "answer": "y", "score": -Infinity}': "-Infinity is no JSON number",
    '{"question": "x", "answer": "a\\ud800"}': r"half of a surrogate pair \(.ud800\)",
    '{"question": "\\udfff", "answer": "a"}': "half of a surrogate",
    '{"\\ud800": 1}': r'unknown shape \("\\ud800"\)',
    '{"messages": "x"}': '"messages" is a string, a list',
    '{"messages": []}': "nothing to train on",
    '{"messages": ["x"]}': "message 1 is a string",
    TURNS % "null": "message 2 is null",
    TURNS % '{"role": "assistant"}': 'message 2 has no field "content"',
    TURNS % '{"content": "A"}': 'message 2 has no field "role"',
    TURNS % '{"role": "tool", "content": "A"}': "message 2 is a tool.s turn; this chat format has the roles system, user and assistant",
    TURNS % '{"role": ["user"], "content": "A"}': "the role an array",
    TURNS % '{"role": "assistant", "content": [{"type": "text"}]}': 'the "content" of message 2 is an array',
    TURNS % '{"role": "assistant", "content": ""}': "message 2 .assistant. is empty",
    TURNS % '{"role": "user", "content": "B"}': "nothing to train on: there is no assistant message",
    TURNS % '{"role": "system", "content": "B"}': "only the first may be",
    '{"messages": [{"role": "assistant", "content": "A"}]}': "no user message before an answer",
    b'{"question": "\xff", "answer": "y"}': "byte 15 is not UTF-8",
    b"\x00\x01": "not JSON",
}


@pytest.mark.parametrize(("line", "what"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_D5_a_bad_line_is_named_with_its_file_its_number_and_what_was_expected(tmp_path: Path, line: str | bytes, what: str) -> None:
    path = jsonl(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(DataError, match=f"^{path}, line 3: .*{what}") as error:
        read_conversations(path)
    assert "--skip_bad" in error.value.hint
    assert len(error.value.message) < 400
    error.value.message.encode()


def test_D5_skipped_lines_are_counted_and_listed_and_the_others_used(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *BAD_LINES, GOOD, '{"question": "cut off')
    with pytest.raises(DataError, match="line 1:"):
        read_conversations(path)
    read = read_conversations(path, skip_bad=True)
    assert [c.line for c in read.conversations] == [len(BAD_LINES) + 1]
    assert [bad.line for bad in read.report.bad] == [*range(1, len(BAD_LINES) + 1), len(BAD_LINES) + 2]
    assert read.report.lines == len(BAD_LINES) + 2


def read_or_complain(path: Path) -> str | bool:
    """Whether there is a conversation, or the message of the DataError; any other error is a failure."""
    try:
        return len(read_conversations(path).conversations) > 0
    except DataError as error:
        return error.message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.integers(0, 200), st.binary(max_size=3), st.sampled_from([GOOD, TURNS % '{"role": "assistant", "content": "A\\u00e9"}']))
def test_D5_a_damaged_line_is_used_or_a_data_error(tmp_path: Path, at: int, junk: bytes, line: str) -> None:
    data = line.encode()
    path = jsonl(tmp_path, data[: at % len(data)] + junk + data[at % len(data) + len(junk) :])
    outcome = read_or_complain(path)
    assert outcome.startswith(str(path)) if isinstance(outcome, str) else outcome


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "no line with text"), (b"\n \r\n", "no line with text"), (b"\xff\xfe{\x00", "not UTF-8")]
)
def test_D5_a_file_without_a_usable_line_is_refused_even_when_bad_ones_are_skipped(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=what):
        read_conversations(path, skip_bad=True)


def test_paths_that_hold_no_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_conversations(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="a folder"):
        read_conversations(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_conversations("a\0b")
    monkeypatch.setattr("positron_mini.text.corpus.rows.MAX_LINE_BYTES", 20)
    with pytest.raises(DataError, match="line 1: longer than 20 bytes"):
        read_conversations(jsonl(tmp_path, GOOD), skip_bad=True)


# --- ids and report ----------------------------------------------------------------------------------------------------------------


def test_D5_a_conversation_of_exactly_the_context_fits_and_one_token_more_does_not(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, GOOD, '{"question": "Why not?", "answer": "Because."}', '{"question": "a", "answer": "b b b b b b b b b b b b b b b b b"}'
    )
    read = read_conversations(path)
    sizes = [len(encode_chat(story_tokenizer(), c.messages).ids) for c in read.conversations]
    assert max(sizes) == sizes[2]
    whole = encode_conversations(story_tokenizer(), read, sizes[2])
    assert (whole.report.examples, whole.report.too_long, whole.report.longest) == (3, 0, sizes[2])
    with pytest.raises(DataError, match=f"line 3: a conversation of {sizes[2]} tokens; at most {sizes[2] - 1} fit"):
        encode_conversations(story_tokenizer(), read, sizes[2] - 1)
    rest = encode_conversations(story_tokenizer(), read, sizes[2] - 1, skip_bad=True).report
    assert (rest.examples, rest.too_long, [bad.line for bad in rest.bad]) == (2, 1, [3])
    with pytest.raises(DataError, match="none of its 3 lines"):
        encode_conversations(story_tokenizer(), read, 3, skip_bad=True)


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    rows = [f'{{"question": "Who is number {i}?", "answer": "It is {i}."}}' for i in range(30)]
    path = jsonl(tmp_path, *rows, rows[3].upper().replace("QUESTION", "question").replace("ANSWER", "answer"), "{", GOOD)
    read = read_conversations(path, skip_bad=True)
    made = encode_conversations(story_tokenizer(), read, 512, validation_share=0.1)
    report = made.report
    assert (report.lines, report.examples, report.duplicates, report.train, report.validation) == (33, 32, 1, 29, 3)
    assert (len(made.train), len(made.validation)) == (29, 3)
    assert report.tokens == sum(len(row.ids) for row in made.train)
    assert report.trained_tokens == sum(sum(row.trained) for row in made.train)
    assert report.bad == (BadLine(32, read.report.bad[0].what),)
    lines = report_lines(report)
    assert "32 conversations (1 instruction, 31 question)" in lines[0]
    assert f"29 rows, {report.tokens:,} tokens, {report.trained_tokens / report.tokens:.0%}" in lines[1]
    assert [line for line in lines if line.startswith("  line 32: the JSON is cut off")]
    many = read_conversations(jsonl(tmp_path, *["{"] * 25, *rows), skip_bad=True)
    assert report_lines(encode_conversations(story_tokenizer(), many, 512).report)[-1] == "  and 15 more"


@pytest.mark.parametrize("rows", [1, 3])
def test_validation_needs_a_second_conversation_unless_it_is_turned_off(tmp_path: Path, rows: int) -> None:
    read = read_conversations(jsonl(tmp_path, *[GOOD] * rows))
    with pytest.raises(DataError, match="training needs one and validation another"):
        encode_conversations(story_tokenizer(), read, 512)
    assert encode_conversations(story_tokenizer(), read, 512, validation_share=0).report.train == rows


def test_the_handwritten_rows_are_read_and_split(tmp_path: Path) -> None:
    report = encode_conversations(story_tokenizer(), read_conversations(HANDWRITTEN), 1_024).report
    assert report.examples == report.lines >= 900
    assert report.validation == round(0.05 * report.examples)


# --- split -------------------------------------------------------------------------------------------------------------------------

short = st.sampled_from(
    ["What is rain?", "what is  RAIN", "Rain?", "Tell me about rain.", "Why?", "Who are you?", "Name a color.", "?!", "!?"]
)
answer = st.sampled_from(
    ["Rain is water that falls from clouds.", "rain is water, that falls from clouds", "I do not know that.", "Yes.", "Red."]
)
story = "Tom had a red ball . " * 10


@given(st.lists(st.tuples(short, answer), min_size=2, max_size=60), st.floats(0.01, 0.5), st.randoms(use_true_random=False))
def test_no_question_and_no_telling_answer_stands_on_both_sides(rows: list[tuple[str, str]], share: float, rng: random.Random) -> None:
    def words(text: str) -> str:
        return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) or text

    def sides(held: list[bool], part: int) -> set[str]:
        texts = [[words(row[part]) for row, is_held in zip(rows, held, strict=True) if is_held == side] for side in (True, False)]
        return set(texts[0]) & set(texts[1])

    held = split_conversations([asked(*row) for row in rows], share)
    assert not sides(held, 0)
    counted = {text for text in sides(held, 1) if len(text.split()) >= 4}
    assert all(sum(words(a) == text for _, a in rows) > 20 for text in counted)
    assert not all(held)
    order = rng.sample(range(len(rows)), len(rows))
    again = split_conversations([asked(*rows[i], line=i) for i in order], share)
    assert [held[i] for i in order] == again


def test_the_share_is_kept_and_at_least_one_is_held_out() -> None:
    rows = [asked(f"What is {i}?", f"It is number {i} of many.") for i in range(1_000)]
    assert sum(split_conversations(rows)) == 50
    assert sum(split_conversations(rows, 0.2)) == 200
    assert sum(split_conversations(rows[:2])) == sum(split_conversations(rows[:7])) == 1
    assert sum(split_conversations(rows, 0)) == 0
    assert sum(split_conversations(rows[:3], 1.0)) == 2
    # held out before, held out later: more rows move the edge of the hash order, they do not shuffle it
    first, more = split_conversations(rows[:500]), split_conversations(rows)
    assert sum(a and b for a, b in zip(first, more, strict=False)) >= 15


def test_two_questions_about_one_story_stand_on_one_side_and_short_answers_bind_nothing() -> None:
    rows = [asked(f"{story}{i // 4}\nQuestion {i % 4}: is it red?", "Yes, it is red.") for i in range(400)]
    held = split_conversations(rows)
    assert sum(held) == 20
    assert all(len(set(held[i : i + 4])) == 1 for i in range(0, 400, 4))
    colors = ["Yes.", "No, blue.", "A red ball.", "Red."]
    assert sum(split_conversations([asked(f"Is {i} red?", colors[i % 4]) for i in range(60)])) == 3


def test_a_phrase_that_many_answers_share_does_not_bind_all_rows_together() -> None:
    rows = [asked(f"Who is {i}?", "I do not know that." if i % 2 else f"That is person number {i}.") for i in range(400)]
    held = split_conversations(rows)
    assert sum(held) == 20
    assert 0 < sum(held[1::2]) < 20
