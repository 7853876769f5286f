"""The law of the word encoder: the ids of plain encoding, for every text and every vocabulary, whatever it has seen before."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.texts import AWKWARD_TEXTS, LOOKALIKES, made_stories, real_stories, repetitive_tokenizer, story_tokenizer
from positron_mini.errors import TokenizerError
from positron_mini.text.tokenizer import Tokenizer, WordEncoder, train_tokenizer, words

texts = st.lists(
    st.one_of(
        st.text(),
        st.text(st.sampled_from("ab \n")),
        st.sampled_from([*LOOKALIKES, "\u2581", " ", "  ", "\n", "\0", "Lily", " the", "12.5", "é", "e\u0301", "\U0001f600"]),
        st.sampled_from(["中文", "aabaa", "''", " Привет"]),
    ),
    max_size=12,
).map("".join)


@functools.cache
def foreign_tokenizer() -> Tokenizer:
    """Pieces of two and more bytes a character: é, ß, Cyrillic, Chinese, an emoji; runs of spaces; two characters without a space."""
    sample = ["Привет, мир!  Как дела?   Хорошо.", "你好世界 你好 世界。", "café déjà-vu Straße", "🙂🙂 ok 🙂", "don't  ''quoted'' 10.25"]
    return train_tokenizer(sample * 30, 370, threads=1)


TOKENIZERS = {"stories": story_tokenizer, "repetitive": repetitive_tokenizer, "foreign": foreign_tokenizer}


def assert_equal(encoder: WordEncoder, tokenizer: Tokenizer, batch: list[str]) -> None:
    ids, counts = encoder.encode(batch)
    plain = [tokenizer.encode(text) for text in batch]
    assert counts.tolist() == [len(found) for found in plain]
    assert ids.tolist() == [index for found in plain for index in found]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=120, deadline=None)
@given(batch=st.lists(texts, max_size=6))
def test_words_give_the_ids_of_plain_encoding(name: str, batch: list[str]) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = WordEncoder(tokenizer)
    for _ in range(2):  # new words, then known ones
        assert_equal(encoder, tokenizer, batch)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_awkward_texts_have_the_ids_of_plain_encoding_together_and_alone(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = WordEncoder(tokenizer)
    for batch in (AWKWARD_TEXTS, *([text] for text in AWKWARD_TEXTS), AWKWARD_TEXTS[::-1], made_stories(50, seed=3)):
        assert_equal(encoder, tokenizer, batch)


def test_real_stories_have_the_ids_of_plain_encoding() -> None:
    stories = real_stories("tinystories-valid.txt")
    tokenizer = train_tokenizer(stories, 2000, threads=1)
    assert_equal(WordEncoder(tokenizer), tokenizer, stories)


def test_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, encoder = story_tokenizer(), WordEncoder(story_tokenizer())
    monkeypatch.setattr(words, "_MAX_WORDS", 5)
    stories = made_stories(20, seed=9)
    for story in stories:
        assert_equal(encoder, tokenizer, [story])
    assert 5 < len(encoder._row) < len({word for story in stories for word in story.split()})  # it did forget


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=texts, size=st.integers(1, 9))
def test_the_parts_of_a_long_text_are_the_text_and_their_ids_its_ids(name: str, text: str, size: int) -> None:
    tokenizer = TOKENIZERS[name]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "_STEP_BYTES", size)
        parts = list(WordEncoder(tokenizer).parts(text))
    assert "".join(parts) == text.replace("\u2581", " ")
    assert [index for part in parts for index in tokenizer.encode(part)] == tokenizer.encode(text)


def test_a_text_falls_into_far_fewer_words_than_bytes() -> None:
    encoder = WordEncoder(story_tokenizer())
    stories = made_stories(200, seed=5)
    encoder.encode(stories)
    assert 50 * len(encoder._row) < sum(map(len, stories))


def test_no_texts_and_empty_texts_have_no_ids() -> None:
    encoder = WordEncoder(story_tokenizer())
    for batch in ([], [""], ["", ""]):
        ids, counts = encoder.encode(batch)
        assert ids.tolist() == [] and counts.tolist() == [0] * len(batch)
    ids, counts = encoder.encode(["", "a", "", "b", ""])
    assert counts.tolist()[::2] == [0, 0, 0] and int(counts.sum()) == len(ids) == 2
    assert ids.dtype == np.uint32


def test_half_a_character_is_refused_as_by_plain_encoding() -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        WordEncoder(story_tokenizer()).encode(["fine", "\ud83d"])
