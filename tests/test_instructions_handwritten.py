"""Laws of the hand-written instruction rows: form, bounds, and every fact that a program can check."""

import json
import re
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

KEYS = ["instruction", "input", "output", "source"]
LONGEST_ANSWER_WORDS, SHORTEST_STORY_WORDS, LONGEST_STORY_WORDS = 60, 61, 150
TASK_STARTS = (
    "What is the opposite", "Say ", "What rhymes", "Find a word", "Make ", "What is the plural", "Finish ", "What color ", "What sound ",
    "Which ", "Count ", "What number ", "How much ", "How many ", "Name ", "What do you call", "What day comes", "What season ",
    "What letter ", "Spell ", "Answer ", "Put ",
)  # fmt: skip
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

RAW = files("positron_mini.text.corpus").joinpath("instructions_handwritten.jsonl").read_bytes()
ROWS: list[dict[str, str]] = [json.loads(line) for line in RAW.decode("utf-8").split("\n")[:-1]]


def words(text: str) -> list[str]:
    """The lower-case words of a text without punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def category(row: dict[str, str]) -> str:
    """story, task, talk or explanation: by length, then by how the request starts, then by whether the answer says I, me or my."""
    if len(row["output"].split()) >= SHORTEST_STORY_WORDS:
        return "story"
    if row["instruction"].startswith(TASK_STARTS):
        return "task"
    return "talk" if re.search(r"\b(I|me|[Mm]y)\b", row["output"]) else "explanation"


def matches(pattern: str) -> list[tuple[dict[str, str], tuple[Any, ...]]]:
    """Rows whose instruction fits the whole pattern, with the groups; there is always at least one."""
    found = [(row, hit.groups()) for row in ROWS if (hit := re.fullmatch(pattern, row["instruction"]))]
    assert found, f"no row asks {pattern}"
    return found


def test_each_line_is_one_json_object_with_four_text_fields_in_order() -> None:
    assert RAW.endswith(b"}\n")
    assert b"\r" not in RAW
    for row in ROWS:
        assert list(row) == KEYS, row
        assert all(isinstance(value, str) for value in row.values()), row
        assert row["source"] == "handwritten"


def test_text_is_printable_ascii_and_holds_no_control_token() -> None:
    for row in ROWS:
        text = row["instruction"] + row["input"] + row["output"]
        assert all(32 <= ord(char) < 127 for char in text), row
        assert "<|" not in text


def test_no_two_rows_ask_the_same_even_with_other_case_or_punctuation() -> None:
    asked = Counter((" ".join(words(row["instruction"])), " ".join(words(row["input"]))) for row in ROWS)
    assert [key for key, count in asked.items() if count > 1] == []


@pytest.mark.parametrize(("kind", "least"), [("talk", 150), ("explanation", 220), ("story", 40), ("task", 150)])
def test_each_category_has_its_promised_number_of_rows(kind: str, least: int) -> None:
    assert Counter(map(category, ROWS))[kind] >= least


def test_every_field_is_trimmed_and_single_spaced_and_answers_end_in_punctuation() -> None:
    for row in ROWS:
        assert row["instruction"], row
        for value in row.values():
            assert value == " ".join(value.split()), row
        assert re.search(r"[a-zA-Z][.!?]\"?$", row["output"]), row
        assert row["output"][0].isupper() or row["output"][0] == '"', row
        assert row["output"].count('"') % 2 == 0, row


def test_answers_have_at_most_60_words_and_stories_61_to_150() -> None:
    for row in ROWS:
        longest = LONGEST_STORY_WORDS if "story" in words(row["instruction"]) else LONGEST_ANSWER_WORDS
        assert 1 <= len(row["output"].split()) <= longest, row
    assert all("story" in words(row["instruction"]) for row in ROWS if category(row) == "story")


def test_explanations_are_one_to_four_short_sentences_of_everyday_words() -> None:
    for row in (row for row in ROWS if category(row) == "explanation"):
        sentences = re.findall(r"[^.!?]+[.!?]+", row["output"])
        assert 1 <= len(sentences) <= 4, row
        assert max(len(sentence.split()) for sentence in sentences) <= 24, row
        assert max(map(len, words(row["output"]))) <= 13, row


def test_exclamation_marks_appear_in_stories_only() -> None:
    assert [row for row in ROWS if "!" in row["output"] and category(row) != "story"] == []


def test_gravity_is_explained_in_the_same_way_however_it_is_asked() -> None:
    asked = {row["instruction"]: row["output"] for row in ROWS}
    for question in ("Explain gravity to a child.", "Tell me about gravity", "What is gravity?"):
        assert asked[question].startswith("Gravity is a pull that you cannot see.")


def test_questions_about_who_it_is_are_answered_with_its_name() -> None:
    for row, _ in matches(r"(?i)(.*\bwho (are|is) (you|this)\b.*|what( is|'s) your name\?|tell me about yourself\.)"):
        assert "Positron Mini" in row["output"], row


def test_it_never_claims_a_body_an_age_or_another_maker() -> None:
    for row in ROWS:
        assert not re.search(r"\bI am (a (person|human|girl|boy|child)|\w+ years old|made by|alive)\b", row["output"]), row


def test_sums_are_right() -> None:
    for row, (a, sign, b) in matches(r"How much is (\w+) (plus|minus) (\w+)\?"):
        total = NUMBERS.index(a) + NUMBERS.index(b) * (1 if sign == "plus" else -1)
        assert row["output"] == f"{a.capitalize()} {sign} {b} is {NUMBERS[total]}."


def test_neighbours_of_numbers_and_days_are_right() -> None:
    for row, (side, number) in matches(r"What number comes (after|before) (\w+)\?"):
        neighbour = NUMBERS[NUMBERS.index(number) + (1 if side == "after" else -1)]
        assert row["output"] == f"{neighbour.capitalize()} comes {side} {number}."
    for row, (day,) in matches(r"What day comes after (\w+)\?"):
        assert row["output"] == f"{DAYS[(DAYS.index(day) + 1) % 7]} comes after {day}."


def test_counting_goes_by_one() -> None:
    for row, _ in matches(r"Count .*"):
        counted = [NUMBERS.index(word) for word in words(row["output"])]
        down = "down" in row["instruction"] or "backward" in row["instruction"]
        end = max(NUMBERS.index(word) for word in words(row["instruction"]) if word in NUMBERS)
        assert counted == (list(range(end, 0, -1)) if down else list(range(1, end + 1))), row


def test_spelling_and_first_letters_are_right() -> None:
    for row, (word,) in matches(r"Spell the word (\w+)\."):
        assert row["output"] == ", ".join(word.upper()) + "."
    for row, (word,) in matches(r"What letter does (\w+) start with\?"):
        assert row["output"] == f"{word.capitalize()} starts with the letter {word[0].upper()}."


def test_name_three_gives_three_things() -> None:
    for row, (count,) in matches(r"Name (two|three) .*"):
        assert len(re.split(r", | and ", row["output"])) == NUMBERS.index(count), row


def test_answers_use_the_input_they_were_given() -> None:
    for row, _ in matches(r"Finish the sentence\."):
        assert row["output"].startswith(row["input"] + " "), row
    for row, _ in matches(r"Put the words in order\."):
        assert sorted(words(row["output"])) == sorted(words(row["input"])), row
    for row, _ in matches(r"(Make a sentence with this word\.|Write a story with these words\.|Say the opposite of this word\.)"):
        assert set(words(row["input"])) <= set(words(row["output"])), row
    for row, _ in matches(r"Which (word does not belong|one is the biggest)\?"):
        assert set(words(row["output"])) & set(words(row["input"])), row


def test_opposites_go_one_way_only_unless_both_ways_agree() -> None:
    pairs = [hit.groups() for row in ROWS if (hit := re.fullmatch(r"The opposite of (\w+) is (\w+)\.", row["output"]))]
    opposite: dict[str, str] = {}
    for a, b in pairs:
        assert opposite.setdefault(a, b) == b, (a, b)
        assert opposite.get(b, a) == a, (a, b)
