"""The story world's stories: reproducible, varied, grammatical, and split without overlap."""

import io
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from helpers.project import ROOT
from positron_mini.storyworld import (
    check_document,
    check_request,
    document,
    instruction_rows,
    read_request,
    request_for,
    requests,
    stories,
    story,
    write_corpus,
)
from positron_mini.storyworld.events import events
from positron_mini.storyworld.grammar import Alt, Sequence, compile_class, mark_articles, set_articles
from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.tales import split_of

MANY = 2_500


@pytest.fixture(scope="module")
def told():
    return list(islice(stories(1), MANY))


def test_a_story_depends_on_seed_and_index_alone(told):
    assert story(1, 7) == told[7]
    assert next(stories(1, start=40)) == told[40]
    assert story(2, 7).text != told[7].text


def test_bytes_do_not_depend_on_the_process():
    code = "import sys; from positron_mini.storyworld import write_corpus; write_corpus(sys.stdout.buffer, 3, 12)"
    places = [{"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)} for seed in ("1", "2")]
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=place).stdout for place in places]
    here = io.BytesIO()
    write_corpus(here, 3, 12)
    assert runs[0] == runs[1] == here.getvalue()


def test_no_module_of_the_story_world_needs_torch_or_numpy():
    code = "import sys, positron_mini.storyworld as s; s.story(0, 0); print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout.strip() == "[]"


def test_stories_have_80_to_300_words_in_paragraphs(told):
    lengths = [len(one.text.split()) for one in told]
    assert min(lengths) >= 80
    assert max(lengths) <= 300
    assert all(one.text.count("\n") >= 2 for one in told)


def test_no_story_occurs_twice(told):
    assert len({one.text for one in told}) == MANY


def test_the_vocabulary_has_1500_words_and_each_arc_occurs(told):
    words = {word for one in told for word in re.findall(r"[a-z]+(?:['-][a-z]+)*", one.text.lower())}
    assert len(words) >= 1_500
    arcs = Counter(one.facts["arc"] for one in told)
    assert len(arcs) == 14
    assert min(arcs.values()) > MANY / 14 / 2


def test_text_is_plain_and_its_articles_quotes_and_capitals_are_right(told):
    for one in told:
        assert re.fullmatch(r"[A-Za-z ,.!?'\"\n-]+", one.text), one.text
        assert not re.search(r"\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]|  | [,.!?]|\b([a-z]+) \1\b", one.text), one.text
        for paragraph in one.text.split("\n"):
            assert paragraph.count('"') % 2 == 0, paragraph
            assert re.match(r'"?[A-Z]', paragraph), paragraph
            assert re.search(r'[.!?]"?$', paragraph), paragraph
            assert not re.search(r"[.!?] [a-z]", re.sub(r'[!?]" [a-z]', "", paragraph)), paragraph


def test_facts_are_json_and_their_sentences_are_the_text(told):
    for one in told[:200]:
        facts = json.loads(json.dumps(one.facts))
        assert " ".join(event["text"] for event in facts["events"]) == one.text.replace("\n", " ")
        assert facts["hero"] in {person["name"] for person in facts["characters"]}
        assert one.choice_nats > 0


def test_train_and_validation_share_no_story_nor_cast(told):
    held_out = list(islice(stories(1, split="validation"), 150))
    sides = [{(one.facts["arc"], *(person["name"] for person in one.facts["characters"])) for one in side} for side in (told, held_out)]
    assert not sides[0] & sides[1]
    assert not {one.text for one in told} & {one.text for one in held_out}
    assert all(split_of(key[0], key[1:]) == "validation" for key in sides[1])


def test_a_document_is_the_story_and_every_second_one_begins_with_its_wish(told):
    for one in told[:100]:
        wish, _, rest = document(one).partition("\n") if one.index % 2 == 0 else ("", "", document(one))
        assert rest == one.text
        assert not wish or read_request(wish) == request_for(one)
        assert check_document(document(one)).consistent
    assert read_request("Once upon a time, there was a fox.") is None


def test_some_wishes_leave_open_what_happens_and_the_suite_asks_none_of_them(told):
    wishes = [request_for(one) for one in told]
    open_ones = [wish for wish in wishes if "event" not in wish.constraints]
    assert len(open_ones) / len(wishes) == pytest.approx(0.15, abs=0.03)
    assert all(set(wish.constraints) <= {"kind", "name"} and read_request(wish.text) == wish for wish in open_ones)
    heroes = {one.facts["hero"]: one for one in told}
    for wish, one in zip(wishes, told, strict=True):
        if wish in open_ones:
            assert check_request(wish, one.text)
            other = next(o for name, o in heroes.items() if name != one.facts["hero"] and wish.constraints["kind"] not in o.text)
            assert not check_request(wish, other.text)
    assert all("event" in wish.constraints for wish in requests(3, 60))


def test_a_story_that_is_not_the_one_wished_for_is_inconsistent(told):
    for one, other in zip(told[:60], told[60:120], strict=True):
        wish = request_for(one)
        verdict = check_document(f"{wish.text}\n{other.text}")
        assert verdict.consistent == check_request(wish, other.text)
        assert verdict.consistent or "wish" in verdict.reasons[-1]
        broken = check_document(f"{wish.text}\n{one.text.replace('.', ' and so on.', 1)}")
        assert not broken.consistent


def test_the_corpus_file_separates_stories_and_the_facts_file_has_a_line_each(tmp_path, told):
    size = write_corpus(tmp_path / "a.txt", 1, 5, facts=tmp_path / "a.jsonl")
    data = (tmp_path / "a.txt").read_bytes()
    assert len(data) == size
    assert data.decode() == "".join(f"{document(one)}\n<|endoftext|>\n" for one in told[:5])
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [one.text for one in told[:5]]
    assert [line["facts"] for line in lines] == [one.facts for one in told[:5]]


def test_instruction_rows_are_reproducible_and_of_the_stories_of_their_split():
    rows = instruction_rows(4, 30)
    assert rows == instruction_rows(4, 30)
    assert rows[:10] == instruction_rows(4, 10)
    assert all(set(row) == {"instruction", "input", "output", "source"} and row["source"] == "storyworld" for row in rows)
    assert all(row["instruction"] and row["output"] for row in rows)
    held_out = instruction_rows(4, 12, split="validation")
    inputs = [{row["input"] or row["output"] for row in side} for side in (rows, held_out)]
    assert not inputs[0] & inputs[1]


def test_the_sample_file_holds_the_rows_that_the_world_writes_today():
    lines = (ROOT / "tiny_instruct_sample.jsonl").read_text().splitlines()
    generated = [row for line in lines if (row := json.loads(line))["source"] == "storyworld"]
    assert len(generated) == 240
    assert generated == instruction_rows(7, 240)


def test_articles_are_marked_only_where_they_are_right():
    assert mark_articles("a cat, an owl, A dog, An egg") == "a~ cat, a~ owl, A~ dog, A~ egg"
    assert mark_articles("an cat, a owl") == "an cat, a owl"
    assert set_articles("a~ owl and A~ cat") == "an owl and A cat"


def alternatives(sequence: Sequence):
    for node in sequence:
        if isinstance(node, Alt):
            yield node
            for option in node.options:
                yield from alternatives(option)


def test_no_choice_offers_the_same_words_twice():
    for event in events().values():
        for telling in event.tellings:
            for alt in alternatives(telling.sequence):
                assert len(set(alt.options)) == len(alt.options), telling.source
    for name in lexicon().classes:
        alt = compile_class(name)
        assert len(set(alt.options)) == len(alt.options), name


def test_names_kinds_and_objects_are_one_word_each_and_do_not_collide():
    words = lexicon()
    assert not {name.lower() for name in words.people} & ({*words.kinds, *words.things, *words.places, *words.adjectives})
    assert all(re.fullmatch(r"[a-z]+", word) for word in (*words.kinds, *words.things, *words.places, *words.adjectives, *words.traits))
    assert not set(words.things) & set(words.adjectives)
